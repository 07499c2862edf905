// SPDX-License-Identifier: MIT
// Starts the threads of a run, shows progress, stops the threads, and waits for them.
#include "supervise.h"
#include "common/clock.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define PROGRESS_MS 200
#define KICK_MS	    10

/* Are all threads that still run waiting in run_hold()? */
static bool all_hold(struct run *run)
{
	bool hold;

	pthread_mutex_lock(&run->lock);
	hold = run->holding && run->holding + run->ended == run->options->threads;
	pthread_mutex_unlock(&run->lock);
	return hold;
}

static void resume(struct run *run)
{
	pthread_mutex_lock(&run->lock);
	run->resumed = true;
	pthread_cond_broadcast(&run->opened);
	pthread_mutex_unlock(&run->lock);
}

static bool pin(struct thread *thread)
{
	const struct options *o = thread->run->options;
	cpu_set_t set;
	unsigned int cpu;

	if (!o->ncpus)
		return true;
	cpu = o->cpus[thread->index % o->ncpus];
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		return run_fail(thread, "cannot run on CPU %u: %s", cpu, strerror(errno));
	return true;
}

static void *thread_main(void *arg)
{
	struct thread *thread = arg;
	struct run *run = thread->run;

	if (pin(thread))
		frame_run(thread);
	__atomic_store_n(&thread->phase, PHASE_DONE, __ATOMIC_RELAXED);
	pthread_mutex_lock(&run->lock);
	run->ended++;
	pthread_mutex_unlock(&run->lock);
	run_wake(run);
	return NULL;
}

/* hold: the run waits for --hold to end. */
static void progress_print(struct run *run, uint64_t start_ns, bool hold)
{
	uint64_t requests = 0, now = clock_ns();
	const char *phase = "connect";
	unsigned int connected = 0;

	for (unsigned int i = 0; i < run->options->threads; i++) {
		const struct thread *thread = run->threads[i];

		connected += __atomic_load_n(&thread->connected, __ATOMIC_RELAXED);
		requests += __atomic_load_n(&thread->histogram.total, __ATOMIC_RELAXED);
		if (__atomic_load_n(&thread->phase, __ATOMIC_RELAXED) != PHASE_CONNECT)
			phase = "warmup";
	}
	if (requests || (*phase == 'w' && !run->options->warmup_ns))
		phase = "run";
	if (hold)
		phase = "hold";
	fprintf(stderr,
		"{\"progress\":{\"phase\":\"%s\",\"elapsed_s\":%.3f,\"connected\":%u,\"requests\":%"
		"llu}}\n",
		phase, (double)(now - start_ns) / 1e9, connected, (unsigned long long)requests);
}

static void ignore(int signal)
{
	(void)signal;
}

/* SIGUSR1 interrupts a thread's system call. The supervisor reads the other signals. */
static int signals_open(void)
{
	struct sigaction kick = {.sa_handler = ignore};
	sigset_t set;

	sigaction(SIGUSR1, &kick, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static bool all_ended(struct run *run)
{
	bool ended;

	pthread_mutex_lock(&run->lock);
	ended = run->ended == run->options->threads;
	pthread_mutex_unlock(&run->lock);
	return ended;
}

/* A thread may enter a system call after its check for a stop, so this repeats until it ends. */
static void kick_all(struct run *run)
{
	for (unsigned int i = 0; i < run->options->threads; i++)
		if (__atomic_load_n(&run->threads[i]->phase, __ATOMIC_RELAXED) != PHASE_DONE)
			pthread_kill(run->threads[i]->id, SIGUSR1);
}

/* Waits until all threads have ended. Returns the signal that came meanwhile, or 0. */
static int watch(struct run *run, int signal_fd)
{
	struct pollfd fds[3] = {
		{.fd = run->event_fd, .events = POLLIN},
		{.fd = signal_fd, .events = POLLIN},
		{.fd = -1, .events = POLLIN}, /* stdin, while the run is held */
	};
	uint64_t start_ns = clock_ns(), shown_ns = start_ns;
	struct signalfd_siginfo info;
	bool held = false;
	int interrupted = 0;
	uint64_t events;

	while (!all_ended(run)) {
		bool stops = run_stops(run);

		poll(fds, 3, stops ? KICK_MS : run->options->progress ? PROGRESS_MS : -1);
		if (fds[0].revents && read(run->event_fd, &events, sizeof(events)) < 0)
			continue;
		if (fds[1].revents && read(signal_fd, &info, sizeof(info)) == sizeof(info)) {
			interrupted = (int)info.ssi_signo;
			pthread_mutex_lock(&run->lock);
			run_stop_locked(run);
			pthread_mutex_unlock(&run->lock);
		}
		if (!held && all_hold(run)) {
			held = true;
			fds[2].fd = STDIN_FILENO;
			progress_print(run, start_ns, true);
		} else if (fds[2].revents) {
			fds[2] = (struct pollfd){.fd = -1};
			resume(run);
		}
		if (stops)
			kick_all(run);
		if (run->options->progress && clock_ns() - shown_ns >= PROGRESS_MS * NS_PER_MS) {
			shown_ns = clock_ns();
			progress_print(run, start_ns, false);
		}
	}
	return interrupted;
}

int supervise(struct run *run)
{
	int signal_fd = signals_open();
	int interrupted;

	run->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (signal_fd < 0 || run->event_fd < 0)
		die(EXIT_FAILED, "cannot make a descriptor: %s", strerror(errno));
	pthread_mutex_init(&run->lock, NULL);
	pthread_cond_init(&run->opened, NULL);

	for (unsigned int i = 0; i < run->options->threads; i++) {
		int error =
			pthread_create(&run->threads[i]->id, NULL, thread_main, run->threads[i]);

		if (error)
			die(EXIT_FAILED, "cannot start thread %u: %s", i, strerror(error));
	}
	interrupted = watch(run, signal_fd);
	for (unsigned int i = 0; i < run->options->threads; i++)
		pthread_join(run->threads[i]->id, NULL);

	pthread_cond_destroy(&run->opened);
	pthread_mutex_destroy(&run->lock);
	close(run->event_fd);
	close(signal_fd);
	return interrupted;
}
