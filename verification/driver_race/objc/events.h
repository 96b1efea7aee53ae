// What the guard, the stand-in of the driver and the scenes tell of themselves, and how a scene orders its threads.
//
// Nothing here orders two threads in the eyes of ThreadSanitizer: all is relaxed, so that only the guard's lock does.
#pragma once
#include <objc/objc.h>

#define STEEL_EVENTS 1
#define STEEL_EVENT(name, object) steel_event(name, object)
void steel_event(const char *name, id object);

// The calling thread is thread `number` of the scene, from 1 on.
void begin_thread(int number);
// This process is a forked child.
void begin_child(void);
// A message is about to be sent; what it is of: "make", "encode", "end", "commit", "wait", "handle" (of `about`).
void sends(const char *call, id object, int about);

// A driver's method stands between its two halves: a scene may keep it there.
void between_halves(void);
// Keeps the calling thread in the next between_halves() until `thread` is through with its call, or waits for the lock.
void stay_for(int thread);
void wait_for_stay(int thread);

// Marks, to be waited for without ordering memory.
void mark(int which);
void wait_for_mark(int which);

// Waits until all threads of the scene have ended; a scene in which nothing happens any more is a deadlock.
void run_threads(int count, void *(*body)(void *));
void print_events(void);
_Noreturn void fail(const char *what);
