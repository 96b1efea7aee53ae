// Lets one thread at a time into the GPU driver's command buffers and encoders.
//
// What Apple's driver is said to get wrong: an encoder's record belongs to a table of the process; to end the encoder
// gives the record back and forgets its address in two steps, while another thread makes, uses or ends an encoder.
// Here the methods of the concrete classes that go into the driver are replaced by versions that hold one recursive
// lock for the call. verification/tla/DriverRace.tla says which must hold it, and why:
//
// * one lock for the process, as the table is the process's, and not one for each encoder;
// * recursive, as the driver sends itself such messages: ending calls destroyImpl;
// * making, using and ending alike: a lock around some of them excludes nobody;
// * but nothing that waits for the GPU (waitUntilCompleted, a queue's commandBuffer): what it waits for needs the lock.
//
// A lock does not help who uses an encoder that another thread has ended: such a call is dropped and counted, and
// steelworks raises an error. The last KEPT ended encoders are kept in memory, so that a thread that still has one in
// hand meets this check and not freed memory; a thread that is slower than KEPT ends is beyond help.
//
// The same file is compiled with GCC's Objective-C runtime on Linux, where verification/driver_race runs it over a
// stand-in of the driver. It has not run on a Mac.
#include <objc/runtime.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#ifdef __APPLE__
void *objc_autoreleasePoolPush(void);
void objc_autoreleasePoolPop(void *pool);
#else
#define objc_autoreleasePoolPush() ((void *)0)
#define objc_autoreleasePoolPop(pool) ((void)(pool))
#endif

#ifndef STEEL_EVENT // what happens is told to the tests only
#define STEEL_EVENT(name, object) ((void)0)
#endif

typedef unsigned long UInt; // NSUInteger
typedef struct { UInt width, height, depth; } Size; // MTLSize
typedef struct { UInt location, length; } Range; // NSRange

id MTLCreateSystemDefaultDevice(void);

@protocol Driver
- (id)newCommandQueue;
- (id)commandBuffer;
- (id)computeCommandEncoder;
- (id)blitCommandEncoder;
- (void)endEncoding;
- (id)retain;
- (void)release;
@end

enum { WAYS = 2, KEPT = 64, OPEN = 1024 };
enum { BUFFER = 1, COMPUTE = 2, BLIT = 4, ENCODER = COMPUTE | BLIT };

// What a method does, as far as the guard goes.
enum Role {
    MAKE,  // returns an encoder
    USE,   // must not reach an encoder that has ended
    END,   // the encoder has ended when it returns
    GONE,  // the encoder's memory is given back
    INNER, // the driver's own message to itself, or one to a command buffer
};

// The methods: name, role, classes that have it, those that must, selector, parameters, arguments.
#define TAKES(...) (id self, SEL command, ##__VA_ARGS__)
#define GIVES(...) (self, command, ##__VA_ARGS__)
#define MAKERS(M)                                                                                                      \
    M(compute, MAKE, BUFFER, BUFFER, "computeCommandEncoder", TAKES(), GIVES())                                        \
    M(computeOfType, MAKE, BUFFER, 0, "computeCommandEncoderWithDispatchType:", TAKES(UInt a), GIVES(a))               \
    M(computeOfDescriptor, MAKE, BUFFER, 0, "computeCommandEncoderWithDescriptor:", TAKES(id a), GIVES(a))             \
    M(blit, MAKE, BUFFER, BUFFER, "blitCommandEncoder", TAKES(), GIVES())                                              \
    M(blitOfDescriptor, MAKE, BUFFER, 0, "blitCommandEncoderWithDescriptor:", TAKES(id a), GIVES(a))
#define OTHERS(M)                                                                                                      \
    M(commit, INNER, BUFFER, BUFFER, "commit", TAKES(), GIVES())                                                       \
    M(enqueue, INNER, BUFFER, 0, "enqueue", TAKES(), GIVES())                                                          \
    M(signalEvent, INNER, BUFFER, 0, "encodeSignalEvent:value:", TAKES(id a, unsigned long long b), GIVES(a, b))       \
    M(waitEvent, INNER, BUFFER, 0, "encodeWaitForEvent:value:", TAKES(id a, unsigned long long b), GIVES(a, b))        \
    M(end, END, ENCODER, ENCODER, "endEncoding", TAKES(), GIVES())                                                     \
    M(deferredEnd, INNER, ENCODER, 0, "deferredEndEncoding", TAKES(), GIVES())                                         \
    M(destroy, INNER, ENCODER, 0, "destroyImpl", TAKES(), GIVES())                                                     \
    M(gone, GONE, ENCODER, 0, "dealloc", TAKES(), GIVES())                                                             \
    M(pipeline, USE, COMPUTE, COMPUTE, "setComputePipelineState:", TAKES(id a), GIVES(a))                              \
    M(buffer, USE, COMPUTE, COMPUTE, "setBuffer:offset:atIndex:", TAKES(id a, UInt b, UInt c), GIVES(a, b, c))         \
    M(buffers, USE, COMPUTE, 0, "setBuffers:offsets:withRange:", TAKES(const id *a, const UInt *b, Range c),           \
      GIVES(a, b, c))                                                                                                  \
    M(bufferOffset, USE, COMPUTE, 0, "setBufferOffset:atIndex:", TAKES(UInt a, UInt b), GIVES(a, b))                   \
    M(bytes, USE, COMPUTE, COMPUTE, "setBytes:length:atIndex:", TAKES(const void *a, UInt b, UInt c), GIVES(a, b, c))  \
    M(texture, USE, COMPUTE, 0, "setTexture:atIndex:", TAKES(id a, UInt b), GIVES(a, b))                               \
    M(memory, USE, COMPUTE, 0, "setThreadgroupMemoryLength:atIndex:", TAKES(UInt a, UInt b), GIVES(a, b))              \
    M(useResource, USE, COMPUTE, 0, "useResource:usage:", TAKES(id a, UInt b), GIVES(a, b))                            \
    M(useResources, USE, COMPUTE, 0, "useResources:count:usage:", TAKES(const id *a, UInt b, UInt c), GIVES(a, b, c))  \
    M(useHeap, USE, COMPUTE, 0, "useHeap:", TAKES(id a), GIVES(a))                                                     \
    M(barrier, USE, COMPUTE, 0, "memoryBarrierWithScope:", TAKES(UInt a), GIVES(a))                                    \
    M(barrierOn, USE, COMPUTE, 0, "memoryBarrierWithResources:count:", TAKES(const id *a, UInt b), GIVES(a, b))        \
    M(threads, USE, COMPUTE, COMPUTE, "dispatchThreads:threadsPerThreadgroup:", TAKES(Size a, Size b), GIVES(a, b))    \
    M(groups, USE, COMPUTE, COMPUTE, "dispatchThreadgroups:threadsPerThreadgroup:", TAKES(Size a, Size b),             \
      GIVES(a, b))                                                                                                     \
    M(groupsFrom, USE, COMPUTE, 0,                                                                                     \
      "dispatchThreadgroupsWithIndirectBuffer:indirectBufferOffset:threadsPerThreadgroup:",                            \
      TAKES(id a, UInt b, Size c), GIVES(a, b, c))                                                                     \
    M(updateFence, USE, ENCODER, 0, "updateFence:", TAKES(id a), GIVES(a))                                             \
    M(waitFence, USE, ENCODER, 0, "waitForFence:", TAKES(id a), GIVES(a))                                              \
    M(fill, USE, BLIT, BLIT, "fillBuffer:range:value:", TAKES(id a, Range b, unsigned char c), GIVES(a, b, c))         \
    M(copy, USE, BLIT, BLIT, "copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:",                           \
      TAKES(id a, UInt b, id c, UInt d, UInt e), GIVES(a, b, c, d, e))                                                 \
    M(synchronize, USE, BLIT, 0, "synchronizeResource:", TAKES(id a), GIVES(a))
#define METHODS(M) MAKERS(M) OTHERS(M)

#define NAME(name, ...) m_##name,
enum { METHODS(NAME) COUNT };

static const struct {
    const char *selector;
    enum Role role;
    int classes, needed; // sets of BUFFER, COMPUTE and BLIT
} methods[COUNT] = {
#define ROW(name, role, classes, needed, selector, takes, gives) {selector, role, classes, needed},
    METHODS(ROW)};

// A replaced method of one class; a method of both kinds of encoders has two.
struct Entry {
    Class class; // that of the objects; the method may be one that it inherits
    Method method;
    IMP original;
};

static struct Entry entries[COUNT][WAYS];
static pthread_mutex_t lock;
// All that follows is read and written with the lock held.
static unsigned depth; // how often its holder has taken the lock
static int installed;
static long calls, refused;
static id kept[KEPT]; // ended encoders, retained
static unsigned oldest;
static id living[OPEN]; // encoders that have not ended, not retained
static unsigned opened;
static int lost_count; // more than OPEN were open at once

static void make_lock(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    depth = 0;
}

__attribute__((constructor)) static void start(void) {
    make_lock();
    pthread_atfork(0, 0, make_lock); // its holder may not exist in the child
}

static void take_lock(void) {
#ifdef STEEL_EVENTS
    if (pthread_mutex_trylock(&lock) != 0) {
        STEEL_EVENT("Wait", 0);
        pthread_mutex_lock(&lock);
    }
#else
    pthread_mutex_lock(&lock);
#endif
    depth++;
    STEEL_EVENT("Lock", 0);
}

static void leave_lock(void) {
    depth--;
    STEEL_EVENT("Unlock", 0);
    pthread_mutex_unlock(&lock);
}

// ---------------------------------------------------------------- encoders

static int place_of(id encoder) {
    for (unsigned i = 0; i < KEPT; i++)
        if (kept[i] == encoder) return (int)i;
    return -1;
}

static void forget_open(id encoder) {
    for (unsigned i = 0; i < opened; i++)
        if (living[i] == encoder) {
            living[i] = living[--opened];
            return;
        }
}

static void note_made(id encoder, id *let_go) {
    int place = place_of(encoder);
    if (place >= 0) { // the driver hands out one that has ended
        *let_go = kept[place];
        kept[place] = 0;
    }
    forget_open(encoder);
    if (opened < OPEN) living[opened++] = encoder;
    else lost_count = 1;
}

static void note_ended(id encoder, id *let_go) {
    forget_open(encoder);
    if (place_of(encoder) >= 0) return;
    if ((*let_go = kept[oldest])) STEEL_EVENT("Forget", *let_go);
    kept[oldest] = [(id<Driver>)encoder retain];
    oldest = (oldest + 1) % KEPT;
}

// ---------------------------------------------------------------- a guarded call

struct Turn {
    int refused;
    id let_go; // released once the lock is free: its end may go anywhere
};

static struct Turn take(int method, id self) {
    struct Turn turn = {0, 0};
    take_lock();
    if (depth > 1) return turn; // the driver's own message
    calls++;
    if ((methods[method].role == USE || methods[method].role == END) && place_of(self) >= 0) {
        turn.refused = 1;
        if (refused++ == 0)
            fprintf(stderr, "steelworks: %s was sent to an encoder that another thread had ended, and was dropped\n",
                    methods[method].selector);
        STEEL_EVENT("Refuse", self);
    }
    return turn;
}

static void through(int method, id self, struct Turn *turn) {
    if (methods[method].role == END) note_ended(self, &turn->let_go);
    if (methods[method].role == GONE) forget_open(self);
}

// Runs however the call ends, an exception included.
static void leave(struct Turn *turn) {
    leave_lock();
    if (turn->let_go) [(id<Driver>)turn->let_go release];
}

#define GUARDED(name) struct Turn turn __attribute__((cleanup(leave))) = take(m_##name, self)
#define MAKER(name, way, takes, gives)                                                                                 \
    static id name##_##way takes {                                                                                     \
        GUARDED(name);                                                                                                 \
        id made = ((id(*) takes)entries[m_##name][way].original)gives;                                                 \
        if (made) note_made(made, &turn.let_go);                                                                       \
        return made;                                                                                                   \
    }
#define OTHER(name, way, takes, gives)                                                                                 \
    static void name##_##way takes {                                                                                   \
        GUARDED(name);                                                                                                 \
        if (turn.refused) return;                                                                                      \
        ((void(*) takes)entries[m_##name][way].original)gives;                                                         \
        through(m_##name, self, &turn);                                                                                \
    }
// A function for each class: what is original to the one is not to the other.
#define MAKER_WAYS(name, r, c, n, s, takes, gives) MAKER(name, 0, takes, gives) MAKER(name, 1, takes, gives)
#define OTHER_WAYS(name, r, c, n, s, takes, gives) OTHER(name, 0, takes, gives) OTHER(name, 1, takes, gives)
MAKERS(MAKER_WAYS)
OTHERS(OTHER_WAYS)

#define FUNCTIONS(name, ...) {(IMP)name##_0, (IMP)name##_1},
static const IMP replacements[COUNT][WAYS] = {METHODS(FUNCTIONS)};

// ---------------------------------------------------------------- installing

struct Subject {
    int kind;
    Class class;
};

// The classes that this machine's driver gives, found by asking it for one object of each.
static int find_classes(struct Subject subjects[3], char *why, size_t size) {
    void *pool = objc_autoreleasePoolPush();
    id device = MTLCreateSystemDefaultDevice();
    id queue = device ? [(id<Driver>)device newCommandQueue] : 0;
    id buffer = queue ? [(id<Driver>)queue commandBuffer] : 0;
    id compute = buffer ? [(id<Driver>)buffer computeCommandEncoder] : 0;
    if (compute) [(id<Driver>)compute endEncoding];
    id blit = compute ? [(id<Driver>)buffer blitCommandEncoder] : 0;
    if (blit) {
        [(id<Driver>)blit endEncoding];
        subjects[0] = (struct Subject){BUFFER, object_getClass(buffer)};
        subjects[1] = (struct Subject){COMPUTE, object_getClass(compute)};
        subjects[2] = (struct Subject){BLIT, object_getClass(blit)};
    } else {
        snprintf(why, size, "Metal gives no %s", !device ? "device" : !buffer ? "command buffer" : "command encoder");
    }
    int found = blit != 0;
    objc_autoreleasePoolPop(pool);
    if (queue) [(id<Driver>)queue release];
    if (device) [(id<Driver>)device release];
    return found;
}

// Notes what is to be replaced.
static int note_methods(const struct Subject *subject, char *why, size_t size) {
    int way = subject->kind == BLIT;
    for (int i = 0; i < COUNT; i++) {
        if (!(methods[i].classes & subject->kind)) continue;
        Method method = class_getInstanceMethod(subject->class, sel_registerName(methods[i].selector));
        if (!method) {
            if (!(methods[i].needed & subject->kind)) continue;
            snprintf(why, size, "%s has no method %s", class_getName(subject->class), methods[i].selector);
            return 0;
        }
        IMP now = method_getImplementation(method);
        if (now == replacements[i][0]) continue; // one class for both kinds of encoders
        entries[i][way] = (struct Entry){subject->class, method, now};
    }
    return 1;
}

// Replaces a method in the class of the objects only: a class above it has other objects too.
static void replace(int method, int way) {
    struct Entry *entry = &entries[method][way];
    if (!entry->method) return;
    SEL selector = sel_registerName(methods[method].selector);
    if (class_getInstanceMethod(class_getSuperclass(entry->class), selector) == entry->method) {
        class_addMethod(entry->class, selector, replacements[method][way], method_getTypeEncoding(entry->method));
        entry->method = class_getInstanceMethod(entry->class, selector);
    } else {
        method_setImplementation(entry->method, replacements[method][way]);
    }
}

// Replaces the methods. Returns how many, or -1 with the reason in `why`; nothing is replaced then.
int steel_guard_install(char *why, size_t size) {
    struct Subject subjects[3];
    int count = 0;
    take_lock();
    if (!installed) {
        // Those of an earlier time stay noted: a thread may still be on its way into one of them.
        installed = find_classes(subjects, why, size) && note_methods(&subjects[0], why, size) &&
                    note_methods(&subjects[1], why, size) && note_methods(&subjects[2], why, size);
        for (int i = 0; i < COUNT && installed; i++)
            for (int way = 0; way < WAYS; way++) replace(i, way);
    }
    for (int i = 0; i < COUNT; i++)
        for (int way = 0; way < WAYS; way++) count += entries[i][way].method != 0;
    int done = installed;
    leave_lock();
    return done ? count : -1;
}

// Puts the driver's own methods back. Returns 0, or -1 with the reason in `why`; all stay replaced then.
int steel_guard_uninstall(char *why, size_t size) {
    id let_go[KEPT] = {0};
    int done = 0;
    take_lock();
    if (!installed) goto out;
    done = -1;
    if (opened || lost_count) {
        snprintf(why, size, "%u encoders are open", opened);
        goto out;
    }
    for (int i = 0; i < COUNT * WAYS; i++) {
        const struct Entry *entry = &entries[i / WAYS][i % WAYS];
        if (entry->method && method_getImplementation(entry->method) != replacements[i / WAYS][i % WAYS]) {
            snprintf(why, size, "something else has replaced -[%s %s] since", class_getName(entry->class),
                     methods[i / WAYS].selector);
            goto out;
        }
    }
    // A method that was inherited stays as the class's own, and does what the inherited one does.
    for (int i = 0; i < COUNT * WAYS; i++) {
        const struct Entry *entry = &entries[i / WAYS][i % WAYS];
        if (entry->method) method_setImplementation(entry->method, entry->original);
    }
    memcpy(let_go, kept, sizeof kept);
    memset(kept, 0, sizeof kept);
    installed = done = 0;
out:
    leave_lock();
    for (int i = 0; i < KEPT; i++)
        if (let_go[i]) [(id<Driver>)let_go[i] release];
    return done;
}

int steel_guard_installed(void) {
    take_lock();
    int is = installed;
    leave_lock();
    return is;
}

// Guarded calls, dropped calls, open encoders.
void steel_guard_statistics(long found[3]) {
    take_lock();
    found[0] = calls;
    found[1] = refused;
    found[2] = (long)opened;
    leave_lock();
}
