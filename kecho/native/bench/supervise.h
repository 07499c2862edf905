/* SPDX-License-Identifier: MIT */
/* Threads of a run, from start to end. */
#ifndef KECHO_NATIVE_SUPERVISE_H
#define KECHO_NATIVE_SUPERVISE_H

#include "run.h"

/* Starts and watches the threads, and waits for them. Returns the signal that came, or 0. */
int supervise(struct run *run);

/* The whole run of one thread (frame.c). */
void frame_run(struct thread *thread);

#endif
