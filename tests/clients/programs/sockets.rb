# SPDX-License-Identifier: MIT
# Usage: ruby sockets.rb copy_stream|nonblock HOST PORT INPUT OUTPUT: sends INPUT, and writes what comes back to OUTPUT.
require "socket"

how, host, port, input, output = ARGV
socket = TCPSocket.new(host, port)
Thread.abort_on_exception = true

case how
when "copy_stream" # which may use sendfile(2) and splice(2)
  sender = Thread.new do
    File.open(input, "rb") { |file| IO.copy_stream(file, socket) }
    socket.close_write
  end
  File.open(output, "wb") { |file| IO.copy_stream(socket, file) }
  sender.join
when "nonblock"
  data = File.binread(input)
  File.open(output, "wb") do |file|
    until (piece = socket.read_nonblock(65_536, exception: false)).nil?
      if piece != :wait_readable
        file.write(piece)
        next
      end
      IO.select([socket], data.empty? ? nil : [socket])
      next if data.empty?

      sent = socket.write_nonblock(data.byteslice(0, 65_536), exception: false)
      next if sent == :wait_writable

      data = data.byteslice(sent..)
      socket.close_write if data.empty?
    end
  end
else
  abort("sockets.rb: #{how}?")
end
