// SPDX-License-Identifier: MIT

// Usage: copy file|pipe|connection ADDRESS INPUT OUTPUT: sends INPUT, and copies what comes back to OUTPUT with io.Copy:
// directly, through a pipe, or through a second connection to the server. io.Copy uses splice(2) if it can.
package main

import (
	"io"
	"log"
	"net"
	"os"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func connect(address string) *net.TCPConn {
	conn, err := net.Dial("tcp", address)
	check(err)
	return conn.(*net.TCPConn)
}

// copyAll copies until the source ends, and then ends the target.
func copyAll(to io.Writer, from io.Reader) {
	_, err := io.Copy(to, from)
	check(err)
	switch to := to.(type) {
	case *net.TCPConn:
		check(to.CloseWrite())
	case *os.File:
		check(to.Close())
	}
}

func main() {
	how, address := os.Args[1], os.Args[2]
	input, err := os.Open(os.Args[3])
	check(err)
	output, err := os.Create(os.Args[4])
	check(err)

	conn := connect(address)
	go copyAll(conn, input)
	switch how {
	case "file":
		copyAll(output, conn)
	case "pipe":
		reading, writing, err := os.Pipe()
		check(err)
		go copyAll(writing, conn)
		copyAll(output, reading)
	case "connection":
		second := connect(address)
		go copyAll(second, conn)
		copyAll(output, second)
	}
}
