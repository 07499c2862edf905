/* SPDX-License-Identifier: MIT */
/* A run of bench, which all threads share, and what each thread has of its own. */
#ifndef KECHO_NATIVE_RUN_H
#define KECHO_NATIVE_RUN_H

#include "cpu-time.h"
#include "histogram.h"
#include "options.h"
#include "payload.h"
#include "samples.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * Words: a request is a message to the server, a reply the same message back. A request is counted
 * once its reply is complete and verified. The phases of a run are: connect, release (of all
 * threads at once), warm-up, hold (if asked for), measured phase, surplus check.
 */

struct conn;
struct thread;

/* Shared by all threads. */
struct run {
	const struct options *options;
	struct thread **threads;
	int event_fd;	/* wakes the supervisor: a thread has ended, or the run stops */
	bool stop;	/* atomic; never reset */
	bool reluctant; /* atomic; the server does not close after us, do not wait for it again */

	pthread_mutex_t lock; /* for all fields below */
	pthread_cond_t opened;
	unsigned int arrived; /* threads that wait at the gate */
	unsigned int openings;
	unsigned int ended;
	unsigned int holding;  /* threads that wait for the measured phase */
	bool resumed;	       /* the measured phase may begin */
	uint64_t opened_ns;    /* when the gate opened last; valid until all are at the next gate */
	unsigned int driven;   /* threads that have their last reply */
	struct cpu_time begin; /* when the first thread began to measure */
	struct cpu_time end;   /* when the last had its last reply */
	char error[256];       /* why the run failed, or "" */
};

enum phase { PHASE_CONNECT, PHASE_RUN, PHASE_DONE };

/* Owned by the thread, but for the atomic fields, which the supervisor reads. */
struct thread {
	pthread_t id;
	unsigned int index;
	struct run *run;
	struct conn *conns;
	unsigned int nconns;
	uint64_t quota;	     /* measured requests still to begin, or NO_LIMIT */
	uint64_t record_ns;  /* requests that begin from here on are measured */
	uint64_t hold_ns;    /* the first request from here on is the first measured, or NO_LIMIT */
	uint64_t end_ns;     /* no request begins from here on */
	uint64_t last_ns;    /* when the last reply came */
	uint64_t elapsed_ns; /* measured time so far */
	uint64_t begun;	     /* requests so far */
	uint64_t skipped;    /* open: due in the warm-up and never begun */
	uint64_t warmups;    /* requests answered and not measured */
	uint64_t release_ns; /* when the run began */
	uint64_t late_sum_ns; /* open: the delays between due and begun */
	uint64_t late_max_ns;
	uint64_t unsent;	/* open: due before the end and never begun */
	struct samples samples; /* empty without --raw */
	struct samples bursts;	/* first thread only: durations of bursts in ns */
	int epoll_fd;
	unsigned char *buffer; /* of buffer_bytes, larger than any reply */
	size_t buffer_bytes;
	struct payload payload;
	enum phase phase;	/* atomic */
	unsigned int connected; /* atomic */
	struct histogram histogram;
};

/* Makes supervise() check the run. */
void run_wake(struct run *run);
/* To be called with the lock held. */
void run_stop_locked(struct run *run);
/* Waits until all threads are here. False if the run stops. */
bool run_gate(struct run *run);
/* As run_gate(); then sets the thread's times for a run that begins now. */
bool run_release(struct thread *thread);
/*
 * Before the thread's first measured request: waits for the end of --hold, if asked for, and looks
 * at the CPU time. Moves all times of the thread by the time that took, and returns it. Requests in
 * flight on other connections belong to the warm-up; their replies may come meanwhile.
 */
uint64_t run_hold(struct thread *thread);
/* After the thread's last reply. */
void run_driven(struct thread *thread);
/* Makes the run fail; the first reason counts. Returns false. */
bool run_fail(struct thread *thread, const char *format, ...) __attribute__((format(printf, 2, 3)));

void thread_keep_sample(struct thread *thread, uint64_t latency_ns);

/* Counts a measured request. */
static inline void thread_record(struct thread *thread, uint64_t latency_ns)
{
	histogram_record(&thread->histogram, latency_ns);
	if (thread->run->options->raw)
		thread_keep_sample(thread, latency_ns);
}

/* Called as a request begins. Returns the time its latency counts from: begin_ns plus any hold. */
static inline uint64_t run_held(struct thread *thread, uint64_t begin_ns)
{
	return begin_ns < thread->hold_ns ? begin_ns : begin_ns + run_hold(thread);
}

/* True if no request begins any more, but for those that are due at a given time. */
static inline bool thread_is_over(const struct thread *thread)
{
	return thread->last_ns >= thread->record_ns &&
	       (!thread->quota || thread->last_ns >= thread->end_ns);
}

static inline bool run_stops(const struct run *run)
{
	return __atomic_load_n(&run->stop, __ATOMIC_RELAXED);
}

#endif
