// SPDX-License-Identifier: MIT
// What the threads of a run share: the gate, the hold, the first failure.
#include "mode.h"
#include "common/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

void run_wake(struct run *run)
{
	uint64_t one = 1;

	if (write(run->event_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: the supervisor is awake */
}

void run_stop_locked(struct run *run)
{
	__atomic_store_n(&run->stop, true, __ATOMIC_RELAXED);
	pthread_cond_broadcast(&run->opened);
}

bool run_fail(struct thread *thread, const char *format, ...)
{
	struct run *run = thread->run;

	pthread_mutex_lock(&run->lock);
	if (!run->stop) {
		va_list args;

		va_start(args, format);
		vsnprintf(run->error, sizeof(run->error), format, args);
		va_end(args);
		run_stop_locked(run);
	}
	pthread_mutex_unlock(&run->lock);
	run_wake(run);
	return false;
}

void thread_keep_sample(struct thread *thread, uint64_t latency_ns)
{
	if (!samples_put(&thread->samples, latency_ns))
		run_fail(thread, "out of memory for the samples of --raw");
}

bool run_gate(struct run *run)
{
	bool open;

	pthread_mutex_lock(&run->lock);
	if (++run->arrived == run->options->threads) {
		run->arrived = 0;
		run->openings++;
		run->opened_ns = clock_ns();
		pthread_cond_broadcast(&run->opened);
	} else {
		unsigned int before = run->openings;

		while (!run->stop && run->openings == before)
			pthread_cond_wait(&run->opened, &run->lock);
	}
	open = !run->stop;
	pthread_mutex_unlock(&run->lock);
	return open;
}

static uint64_t add_times(uint64_t a, uint64_t b)
{
	return b == NO_LIMIT ? NO_LIMIT : a + b;
}

static void move_times(struct thread *thread, uint64_t by_ns)
{
	thread->release_ns += by_ns;
	thread->record_ns += by_ns;
	thread->end_ns = add_times(by_ns, thread->end_ns);
	thread->last_ns += by_ns;
	for (unsigned int i = 0; i < thread->nconns; i++) {
		thread->conns[i].begin_ns += by_ns;
		thread->conns[i].sent_ns += by_ns;
	}
}

uint64_t run_hold(struct thread *thread)
{
	struct run *run = thread->run;
	uint64_t before_ns = clock_ns(), held_ns;

	pthread_mutex_lock(&run->lock);
	if (run->options->hold) {
		run->holding++;
		run_wake(run);
		while (!run->stop && !run->resumed)
			pthread_cond_wait(&run->opened, &run->lock);
	}
	if (!run->begin.wall_ns)
		run->begin = cpu_time_now(run->options->service);
	pthread_mutex_unlock(&run->lock);
	held_ns = clock_ns() - before_ns;
	move_times(thread, held_ns);
	thread->hold_ns = NO_LIMIT;
	return held_ns;
}

void run_driven(struct thread *thread)
{
	struct run *run = thread->run;

	pthread_mutex_lock(&run->lock);
	if (++run->driven == run->options->threads)
		run->end = cpu_time_now(run->options->service);
	pthread_mutex_unlock(&run->lock);
}

bool run_release(struct thread *thread)
{
	const struct options *o = thread->run->options;

	if (!run_gate(thread->run))
		return false;
	thread->release_ns = thread->run->opened_ns;
	thread->record_ns = add_times(thread->release_ns, o->warmup_ns);
	thread->end_ns = add_times(thread->record_ns, o->duration_ns);
	thread->hold_ns = o->mode->in_bursts ? NO_LIMIT : thread->record_ns;
	thread->last_ns = thread->release_ns;
	__atomic_store_n(&thread->phase, PHASE_RUN, __ATOMIC_RELAXED);
	return true;
}
