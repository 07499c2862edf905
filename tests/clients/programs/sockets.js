// SPDX-License-Identifier: MIT
// Usage: node sockets.js pipe|pause|end HOST PORT INPUT OUTPUT: sends INPUT, and writes what comes back to OUTPUT.
"use strict";
const fs = require("fs");
const net = require("net");

const [how, host, port, input, output] = process.argv.slice(2);

const ways = {
	// Streams with backpressure.
	pipe(socket) {
		fs.createReadStream(input).pipe(socket);
		socket.pipe(fs.createWriteStream(output));
	},

	// A reader that stops for a moment after each piece.
	pause(socket) {
		const file = fs.openSync(output, "w");
		socket.on("data", (piece) => {
			fs.writeSync(file, piece);
			socket.pause();
			setTimeout(() => socket.resume(), 1);
		});
		fs.createReadStream(input).pipe(socket);
	},

	// One write of everything, and end() at once.
	end(socket) {
		const pieces = [];
		socket.on("data", (piece) => pieces.push(piece));
		socket.on("end", () => fs.writeFileSync(output, Buffer.concat(pieces)));
		socket.end(fs.readFileSync(input));
	},
};

ways[how](net.connect({ host, port: Number(port), allowHalfOpen: true }));
