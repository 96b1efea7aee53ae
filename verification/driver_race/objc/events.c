#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "events.h"

enum { THREADS = 16, MOST = 4096, MARKS = 256 };

struct Event {
    unsigned ticket;
    const char *name, *call;
    id object;
    int about;
};

static struct {
    struct Event events[MOST];
    _Atomic unsigned count;
    const char *call;
    int depth, about;
    _Atomic int waits, calls_ended, stays, stay_for, ended;
} threads[THREADS];

static _Atomic unsigned tickets;
static _Atomic int marks[MARKS];
static _Atomic int holder; // of the guard's lock: 1 more than its thread, 0 for nobody
static _Thread_local int me;
static int in_child;

#define GET(x) atomic_load_explicit(&(x), memory_order_relaxed)
#define SET(x, value) atomic_store_explicit(&(x), value, memory_order_relaxed)

static void rest(void) {
    struct timespec moment = {0, 100000};
    nanosleep(&moment, 0);
}

void begin_thread(int number) { me = number; }
void begin_child(void) { in_child = 1; }

static void note(const char *name, id object) {
    unsigned at = GET(threads[me].count);
    if (at == MOST) fail("too many events");
    unsigned ticket = atomic_fetch_add_explicit(&tickets, 1, memory_order_relaxed);
    threads[me].events[at] = (struct Event){ticket, name, threads[me].call, object, threads[me].about};
    SET(threads[me].count, at + 1);
}

void sends(const char *call, id object, int about) {
    threads[me].call = call;
    threads[me].about = about;
    note("Send", object);
}

void steel_event(const char *name, id object) {
    if (strcmp(name, "Wait") == 0) {
        if (in_child) fail("deadlock: a forked child waits for a lock that nobody holds");
        if (GET(holder) == me + 1) fail("deadlock: a thread waits for the lock that it holds");
        SET(threads[me].waits, 1);
        return; // it is not yet inside: the model has no such step
    }
    int ends = strcmp(name, "Finish") == 0;
    if (strcmp(name, "Lock") == 0) {
        SET(threads[me].waits, 0);
        SET(holder, me + 1);
        threads[me].depth++;
    }
    if (strcmp(name, "Unlock") == 0) {
        ends = 1;
        if (--threads[me].depth == 0) SET(holder, 0);
    }
    if (threads[me].call == 0) return; // not of a call that a scene made
    if (strcmp(name, "Begin") == 0 && threads[me].depth == 0) note("Enter", object);
    note(name, object);
    if (ends && threads[me].depth == 0) {
        SET(threads[me].calls_ended, GET(threads[me].calls_ended) + 1);
        threads[me].call = 0;
    }
}

void stay_for(int thread) { SET(threads[me].stay_for, thread); }

void between_halves(void) {
    int thread = GET(threads[me].stay_for);
    if (me == 0 || thread == 0) return;
    SET(threads[me].stay_for, 0);
    int before = GET(threads[thread].calls_ended);
    SET(threads[me].stays, 1);
    while (!GET(threads[thread].waits) && GET(threads[thread].calls_ended) == before) rest();
    SET(threads[me].stays, 0);
}

void wait_for_stay(int thread) {
    while (!GET(threads[thread].stays)) rest();
}

void mark(int which) { SET(marks[which], 1); }
void wait_for_mark(int which) {
    while (!GET(marks[which])) rest();
}

struct Body {
    void *(*body)(void *);
    int number;
};

static void *run(void *argument) {
    struct Body *given = argument;
    begin_thread(given->number);
    given->body(&given->number);
    SET(threads[me].ended, 1);
    return 0;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

void run_threads(int count, void *(*body)(void *)) {
    const char *named = getenv("STEEL_PATIENCE");
    double patience = named ? atof(named) : 30;
    pthread_t running[THREADS];
    struct Body given[THREADS];
    for (int i = 0; i < count; i++) {
        given[i] = (struct Body){body, i + 1};
        pthread_create(&running[i], 0, run, &given[i]);
    }
    unsigned seen = GET(tickets);
    double since = now();
    for (int left = count; left;) {
        left = 0;
        for (int i = 1; i <= count; i++) left += !GET(threads[i].ended);
        int held_by = GET(holder) - 1;
        if (left && held_by > 0 && GET(threads[held_by].ended)) fail("deadlock: a thread has ended with the lock");
        if (GET(tickets) != seen) since = now();
        seen = GET(tickets);
        if (left) rest();
        if (left && now() - since > patience) {
            for (int i = 1; i <= count; i++)
                if (!GET(threads[i].ended))
                    fprintf(stderr, "thread %d %s\n", i, GET(threads[i].waits) ? "waits for the lock" : "goes nowhere");
            fail("deadlock: nothing happens any more");
        }
    }
    for (int i = 0; i < count; i++) pthread_join(running[i], 0);
}

__attribute__((no_sanitize("thread"))) void print_events(void) { // a failing scene has other threads still
    for (int i = 1; i < THREADS; i++)
        for (unsigned at = 0; at < GET(threads[i].count); at++) {
            struct Event *e = &threads[i].events[at];
            printf("event %u %d %s %s %p %d\n", e->ticket, i, e->name, e->call, (void *)e->object, e->about);
        }
    fflush(stdout);
}

void fail(const char *what) {
    print_events();
    fprintf(stderr, "FAILED: %s\n", what);
    _exit(3);
}
