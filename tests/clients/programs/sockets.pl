#!/usr/bin/perl
# SPDX-License-Identifier: MIT
# Usage: sockets.pl fork|lines HOST PORT INPUT OUTPUT: sends INPUT, and writes what comes back to OUTPUT.
use strict;
use warnings;
use IO::Socket::INET;

my ($how, $host, $port, $input, $output) = @ARGV;
my $socket = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port) or die "connect: $@\n";
open(my $from, '<:raw', $input) or die "$input: $!\n";
open(my $to, '>:raw', $output) or die "$output: $!\n";
binmode($socket);

if ($how eq 'fork') {    # a process that sends, and one that receives
	my $pid = fork() // die "fork: $!\n";
	if (!$pid) {
		while (sysread($from, my $piece, 30_000)) {
			print {$socket} $piece or die "print: $!\n";
		}
		$socket->flush();
		$socket->shutdown(1);
		exit 0;
	}
	while (my $got = sysread($socket, my $piece, 65_536) // die "sysread: $!\n") {
		print {$to} $piece;
	}
	waitpid($pid, 0);
	exit($? >> 8);
}

$socket->autoflush(1);    # lines: one after the other, through stdio
while (defined(my $line = <$from>)) {
	print {$socket} $line or die "print: $!\n";
	read($socket, my $echo, length $line) == length $line or die "the stream ended\n";
	print {$to} $echo;
}
$socket->shutdown(1);
print {$to} $_ while <$socket>;
