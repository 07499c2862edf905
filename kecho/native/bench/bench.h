/* SPDX-License-Identifier: MIT */
/* What the parts of bench agree on: options, a run, its threads and connections, modes. */
#ifndef KECHO_NATIVE_BENCH_H
#define KECHO_NATIVE_BENCH_H

#include "common/args.h"
#include "histogram.h"
#include "payload.h"
#include "samples.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * Words: a request is a message on its way out, a reply the same on its way back, and the two
 * together are counted as one request once the reply is whole and verified. A run is: connect,
 * release (all threads at once), warm-up, hold (if asked for), measured phase, surplus check.
 */

struct thread;
struct conn;
struct options;

enum io { IO_DONE, IO_WAIT, IO_FAILED };

/*
 * A way to load a server: one const table. frame.c has what is the same for all. Functions return
 * false, or IO_FAILED, when the run fails or stops; what failed has been told then.
 */
struct mode {
	const char *name;
	bool connects;	/* its requests make their connections; else they are made first */
	bool in_rounds; /* all of it is done --rounds times */
	/* Dies with EXIT_USAGE if the options make no sense together; may be NULL. */
	void (*check)(const struct options *options);
	/* Before a thread is released; may be NULL. */
	bool (*prepare)(struct thread *thread);
	/* From the release to the last reply; NULL: drive(), which calls the functions below. */
	bool (*drive)(struct thread *thread);
	/*
	 * When the thread's next request is to begin: 0 is at once, with the latency counted from
	 * there; a time is then, with the latency counted from that time, however late it is sent;
	 * NO_LIMIT is never again, it is over.
	 */
	uint64_t (*due)(struct thread *thread, uint64_t now_ns);
	/* A request begins on a connection that has none. IO_DONE: its reply is there already. */
	enum io (*begin)(struct thread *thread, struct conn *conn);
	/* Something happened to a connection with a request. IO_DONE: its reply is whole. */
	enum io (*advance)(struct thread *thread, struct conn *conn);
};

extern const struct mode mode_closed, mode_burst, mode_open, mode_crr, mode_pipeline;

#define NO_LIMIT UINT64_MAX

struct options {
	const struct mode *mode;
	const char *host;
	uint16_t port;
	struct address address;
	unsigned int connections;
	unsigned int threads;
	size_t size_bytes;
	uint64_t count;	      /* measured requests, or NO_LIMIT */
	uint64_t duration_ns; /* or NO_LIMIT */
	uint64_t warmup_ns;
	uint64_t connect_timeout_ns;
	uint64_t io_timeout_ns;
	uint64_t seed;
	unsigned int rounds; /* burst */
	double rate;	     /* open: requests a second, over all threads */
	unsigned int depth;  /* pipeline: requests under way on a connection */
	const char *hdr;     /* file names, or NULL */
	const char *raw;
	const unsigned int *cpus; /* thread i runs on cpus[i % ncpus] */
	unsigned int ncpus;	  /* 0: wherever the scheduler puts it */
	bool json;
	bool progress;
	bool hold; /* between warm-up and measured phase, until stdin says so */
};

/* Dies with EXIT_USAGE if it must. */
void options_parse(struct options *o, int argc, char **argv);
void options_free(struct options *o);

/* Shared by all threads. */
struct run {
	const struct options *options;
	struct thread **threads;
	int event_fd;	/* wakes the supervisor: a thread has ended, or the run stops */
	bool stop;	/* atomic; never taken back */
	bool reluctant; /* atomic; the server does not close after us, do not wait again */

	pthread_mutex_t lock; /* for all below */
	pthread_cond_t opened;
	unsigned int arrived;
	unsigned int openings;
	unsigned int ended;
	unsigned int holding; /* threads that wait for the measured phase */
	bool resumed;	      /* that has been let begin */
	uint64_t opened_ns;   /* when the gate opened last; so until all are at the next */
	char error[256];      /* what made the run fail, or "" */
};

enum phase { PHASE_CONNECT, PHASE_RUN, PHASE_DONE };

struct conn {
	int fd; /* or -1 */
	uint32_t id;
	uint32_t tx_bytes; /* of the request, sent so far */
	uint32_t rx_bytes; /* of the reply, received and verified so far */
	uint64_t requests; /* begun so far; the one under way has this number, the first is 1 */
	uint64_t begin_ns; /* of the request under way: what its latency counts from */
	uint64_t sent_ns;  /* when it began in truth: what its timeout counts from */
	struct conn *next; /* in the list of idle ones */
	bool connecting;   /* since sent_ns */
	bool busy;	   /* a request is under way */
	bool measured;	   /* and it is to be counted */
	bool blocked;	   /* epoll watches for room to send */
};

/* All its own thread's, but for what is marked atomic, which the supervisor reads. */
struct thread {
	pthread_t id;
	unsigned int index;
	struct run *run;
	struct conn *conns;
	unsigned int nconns;
	uint64_t quota;	    /* measured requests still to begin, or NO_LIMIT */
	uint64_t record_ns; /* requests begun from here on are measured */
	uint64_t hold_ns;   /* and the first of them waits for --hold; NO_LIMIT when that is over */
	uint64_t end_ns;    /* and none begins from here on */
	uint64_t last_ns;   /* when the last reply came */
	uint64_t elapsed_ns;  /* measured time so far */
	uint64_t begun;	      /* requests so far */
	uint64_t skipped;     /* open: due in the warm-up and never begun */
	uint64_t warmups;     /* requests answered and not measured */
	uint64_t release_ns;  /* when the run began */
	uint64_t late_sum_ns; /* open: how much later than due requests were begun */
	uint64_t late_max_ns;
	uint64_t unsent;	/* open: due before the end and never begun */
	struct samples samples; /* empty but with --raw */
	struct samples rounds;	/* burst, first thread only: how long each round took, in ns */
	int epoll_fd;
	unsigned char *buffer; /* buffer_bytes, more than any reply */
	size_t buffer_bytes;
	struct payload payload;
	enum phase phase;	/* atomic */
	unsigned int connected; /* atomic */
	struct histogram histogram;
};

/* Files that have a heading below call only those that come before them, not the other way round. */

/* ---- run.c ---- */

/* Lets supervise() look. */
void run_wake(struct run *run);
/* Called with the lock held. */
void run_stop_locked(struct run *run);
/* Waits until all threads are here. False when the run is to stop. */
bool run_gate(struct run *run);
/* run_gate(), and then sets the thread's times for a run that begins now. */
bool run_release(struct thread *thread);
/*
 * Waits until --hold is over, and moves all of the thread's times by how long that took, which it
 * returns. What is under way on other connections is warm-up: its replies may come meanwhile.
 */
uint64_t run_hold(struct thread *thread);
/* Makes the run fail, with the first reason given. Returns false. */
bool run_fail(struct thread *thread, const char *format, ...) __attribute__((format(printf, 2, 3)));

void thread_keep_sample(struct thread *thread, uint64_t latency_ns);

/* One measured request more. */
static inline void thread_record(struct thread *thread, uint64_t latency_ns)
{
	histogram_record(&thread->histogram, latency_ns);
	if (thread->run->options->raw)
		thread_keep_sample(thread, latency_ns);
}

/* Every request begins with this: from when it counts, begin_ns unless it was held back. */
static inline uint64_t run_held(struct thread *thread, uint64_t begin_ns)
{
	return begin_ns < thread->hold_ns ? begin_ns : begin_ns + run_hold(thread);
}

/* Whether no further request begins, unless one is due at a time. */
static inline bool thread_is_over(const struct thread *thread)
{
	return thread->last_ns >= thread->record_ns &&
	       (!thread->quota || thread->last_ns >= thread->end_ns);
}

static inline bool run_stops(const struct run *run)
{
	return __atomic_load_n(&run->stop, __ATOMIC_RELAXED);
}

/* ---- conn.c: false means that the run fails or stops, and the error has been told ---- */

/* Connects all of the thread's connections, some at a time. */
bool conns_connect(struct thread *thread);
/* Half-closes all, waits for the server to do the same, and fails if it sends anything but that. */
bool conns_drain(struct thread *thread);
void conns_close(struct thread *thread);

/* False when a connection takes longer than it may to connect or to reply. */
bool conns_in_time(struct thread *thread);

/* Begins to connect; epoll tells by room to send when that is over. */
bool conn_open(struct thread *thread, struct conn *conn);
/* It is over: from here on epoll tells what there is to receive. */
bool conn_opened(struct thread *thread, struct conn *conn);
void conn_close(struct thread *thread, struct conn *conn);
/* Whether epoll shall tell too when there is room to send. */
bool conn_watch_room(struct thread *thread, struct conn *conn, bool blocked);

/* Begins the next request; nothing is sent yet. */
void conn_begin(struct thread *thread, struct conn *conn, uint64_t begin_ns);
/* Sends what is left of the request, as far as there is room. */
enum io conn_send(struct thread *thread, struct conn *conn);
/*
 * Receives and verifies what there is of the reply. IO_DONE: it is whole, and thread->last_ns is
 * when that was.
 */
enum io conn_recv(struct thread *thread, struct conn *conn);
/* The reply is whole: records its latency. */
void conn_end(struct thread *thread, struct conn *conn);
bool conn_fail_timeout(struct thread *thread, const struct conn *conn);
/* What recv() said when it said 0 or an error. */
bool conn_fail_recv(struct thread *thread, const struct conn *conn, ssize_t got);
bool conn_fail_send(struct thread *thread, const struct conn *conn);
/* Compares n bytes with the reply from rx_bytes on; the payload must not be open. */
bool conn_verify(struct thread *thread, struct conn *conn, const unsigned char *data, size_t n);
bool conn_fail_surplus(struct thread *thread, const struct conn *conn, unsigned char byte);

/* Sends what there is room for and takes what has come; conn_end() when the reply is whole. */
enum io conn_exchange(struct thread *thread, struct conn *conn);

/* ---- drive.c, alone.c ---- */

/* Keeps the thread's connections busy as its mode says, one request at a time each, by epoll. */
bool drive(struct thread *thread);
/* For modes whose next request begins when one is answered. */
uint64_t due_at_once(struct thread *thread, uint64_t now_ns);

/* The closed loop of a thread with one connection. */
bool alone_prepare(struct thread *thread);
bool alone_drive(struct thread *thread);

/* ---- frame.c, supervise.c ---- */

/* A thread's whole run. */
void frame_run(struct thread *thread);
/* Starts the threads, watches them, waits for them. The signal that interrupted it, or 0. */
int supervise(struct run *run);

/* ---- report.c ---- */

struct result {
	const struct options *options;
	const struct histogram *histogram;
	const struct samples *rounds; /* of a burst, in order of length; else empty */
	uint64_t elapsed_ns;
	uint64_t late_sum_ns;
	uint64_t late_max_ns;
	uint64_t unsent;
	uint64_t warmups;
	bool interrupted;
};

void report_text(const struct result *result);
void report_json(const struct result *result);

#endif
