// SPDX-License-Identifier: MIT
/*
 * Usage: uring send|send_zc HOST PORT INPUT OUTPUT: sends INPUT, and writes what comes back to OUTPUT, by io_uring. It
 * receives with one multishot request into provided buffers, and has one send in flight. send_zc is zero-copy: each send
 * needs a second completion, which says that its bytes may change. The program then changes them.
 * Status 3: this kernel does not support it.
 */
#include "file.h"

#include <liburing.h>
#include <stdbool.h>
#include <string.h>

#define BUFFERS	    16
#define BUFFER_SIZE 16384
#define GROUP	    7
#define PIECE	    20000

enum { RECEIVED = 1, SENT };

static struct io_uring ring;
static struct io_uring_buf_ring *buffers;
static char storage[BUFFERS][BUFFER_SIZE];
static int sock;

static struct io_uring_sqe *new_entry(unsigned long what)
{
	struct io_uring_sqe *entry = io_uring_get_sqe(&ring);

	io_uring_sqe_set_data64(entry, what);
	return entry;
}

static int ring_result(const char *what, int result)
{
	if (result < 0) {
		errno = -result;
		checked(what, -1);
	}
	return result;
}

static void provide(int number)
{
	io_uring_buf_ring_add(buffers, storage[number], BUFFER_SIZE, (unsigned short)number,
			      io_uring_buf_ring_mask(BUFFERS), 0);
	io_uring_buf_ring_advance(buffers, 1);
}

static void set_up(void)
{
	struct io_uring_buf_reg group = {.ring_entries = BUFFERS, .bgid = GROUP};

	if (io_uring_queue_init(64, &ring, 0) < 0)
		exit(3);
	buffers = aligned_alloc(4096, 4096);
	memset(buffers, 0, 4096);
	group.ring_addr = (unsigned long)buffers;
	if (io_uring_register_buf_ring(&ring, &group, 0) < 0)
		exit(3);
	for (int i = 0; i < BUFFERS; i++)
		provide(i);
}

static void start_receiving(void)
{
	struct io_uring_sqe *entry = new_entry(RECEIVED);

	io_uring_prep_recv_multishot(entry, sock, NULL, 0, 0);
	entry->flags |= IOSQE_BUFFER_SELECT;
	entry->buf_group = GROUP;
}

/* Writes a piece that has arrived. False: the stream has ended. */
static bool received(const struct io_uring_cqe *done, int output)
{
	if (done->res != -ENOBUFS && !ring_result("recv", done->res))
		return false;
	if (done->res > 0) {
		int number = (int)(done->flags >> IORING_CQE_BUFFER_SHIFT);

		write_all(output, storage[number], (size_t)done->res);
		provide(number);
	}
	if (!(done->flags & IORING_CQE_F_MORE))
		start_receiving();
	return true;
}

static void start_sending(struct input *input, bool copies)
{
	size_t size = input->size < PIECE ? input->size : PIECE;

	if (copies)
		io_uring_prep_send(new_entry(SENT), sock, input->bytes, size, 0);
	else
		io_uring_prep_send_zc(new_entry(SENT), sock, input->bytes, size, 0, 0);
}

/* Handles a completion of a send: the first, with its bytes, or the second, which allows them to change. */
static void sent(const struct io_uring_cqe *done, struct input *input, bool copies)
{
	static size_t taken;

	if (!(done->flags & IORING_CQE_F_NOTIF))
		taken = (size_t)ring_result("send", done->res);
	if (done->flags & IORING_CQE_F_MORE)
		return;
	if (!copies)
		memset((char *)input->bytes, 0, taken);
	input->bytes += taken;
	input->size -= taken;
	if (input->size)
		start_sending(input, copies);
	else
		checked("shutdown", shutdown(sock, SHUT_WR));
}

int main(int argc, char **argv)
{
	struct input input;
	bool copies, goes_on = true;
	int output;

	if (argc != 6)
		return 2;
	copies = strcmp(argv[1], "send_zc") != 0;
	set_up();
	sock = connect_to(argv[2], argv[3]);
	input = read_input(argv[4]);
	output = create_output(argv[5]);
	start_receiving();
	start_sending(&input, copies);
	while (goes_on) {
		struct io_uring_cqe *found, done;

		ring_result("submit", io_uring_submit_and_wait(&ring, 1));
		ring_result("wait", io_uring_wait_cqe(&ring, &found));
		done = *found;
		io_uring_cqe_seen(&ring, found);
		if (io_uring_cqe_get_data64(&done) == SENT)
			sent(&done, &input, copies);
		else
			goes_on = received(&done, output);
	}
	return input.size != 0;
}
