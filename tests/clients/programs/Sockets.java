// SPDX-License-Identifier: MIT

import java.io.FileOutputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/** Usage: Sockets available|nio|transfer HOST PORT INPUT OUTPUT: sends INPUT, and writes what comes back to OUTPUT. */
final class Sockets {
	/** Sends one message after the other, and reads only as many bytes as available() counts. */
	static void available(InetSocketAddress server, Path input, Path output) throws Exception {
		byte[] data = Files.readAllBytes(input);
		int message = 8192;
		try (Socket socket = new Socket(server.getAddress(), server.getPort());
				FileOutputStream file = new FileOutputStream(output.toFile())) {
			InputStream in = socket.getInputStream();
			OutputStream out = socket.getOutputStream();
			for (int sent = 0, got = 0; got < data.length;) {
				if (sent == got) {
					int size = Math.min(message, data.length - sent);
					out.write(data, sent, size);
					sent += size;
				}
				int there = in.available();
				if (there > 0)
					file.write(in.readNBytes(there));
				else
					Thread.sleep(1);
				got += there;
			}
			socket.shutdownOutput();
			if (in.read() >= 0)
				throw new Exception("more than was sent");
		}
	}

	/** Sends and receives with one selector. */
	static void nio(InetSocketAddress server, Path input, Path output) throws Exception {
		ByteBuffer toSend = ByteBuffer.wrap(Files.readAllBytes(input)), got = ByteBuffer.allocateDirect(100_000);
		try (SocketChannel socket = SocketChannel.open(server); FileChannel file = create(output);
				Selector selector = Selector.open()) {
			socket.configureBlocking(false);
			SelectionKey key = socket.register(selector, SelectionKey.OP_READ | SelectionKey.OP_WRITE);
			while (true) {
				selector.select();
				selector.selectedKeys().clear();
				if (key.isWritable()) {
					socket.write(toSend);
					if (!toSend.hasRemaining()) {
						socket.shutdownOutput();
						key.interestOps(SelectionKey.OP_READ);
					}
				}
				if (key.isReadable()) {
					if (socket.read(got.clear()) < 0)
						return;
					for (got.flip(); got.hasRemaining();)
						file.write(got);
				}
			}
		}
	}

	/** Copies by transferTo and transferFrom, for which the JVM uses sendfile(2) if it can. */
	static void transfer(InetSocketAddress server, Path input, Path output) throws Exception {
		try (SocketChannel socket = SocketChannel.open(server); FileChannel from = FileChannel.open(input);
				FileChannel file = create(output)) {
			Thread sender = new Thread(() -> {
				try {
					for (long sent = 0; sent < from.size();)
						sent += from.transferTo(sent, from.size() - sent, socket);
					socket.shutdownOutput();
				} catch (Exception e) {
					throw new RuntimeException(e);
				}
			});
			sender.start();
			for (long got = 0, more = 1; more > 0; got += more)
				more = file.transferFrom(socket, got, 1 << 20);
			sender.join();
		}
	}

	static FileChannel create(Path output) throws Exception {
		return FileChannel.open(output, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
	}

	public static void main(String[] args) throws Exception {
		InetSocketAddress server = new InetSocketAddress(args[1], Integer.parseInt(args[2]));
		Path input = Path.of(args[3]), output = Path.of(args[4]);
		switch (args[0]) {
			case "available" -> available(server, input, output);
			case "nio" -> nio(server, input, output);
			case "transfer" -> transfer(server, input, output);
			default -> throw new IllegalArgumentException(args[0]);
		}
	}
}
