// Scenes: a few threads that use the driver, in an order that the scene enforces.
//
//     scenes NAME guard|none
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "events.h"
#include "standin.h"

int steel_guard_install(char *why, size_t size);
int steel_guard_uninstall(char *why, size_t size);
int steel_guard_installed(void);
void steel_guard_statistics(long found[3]);

static id device, queue, shared_buffer, things[16];
static void *_Atomic shared; // an encoder that several threads use

#define GET(x) atomic_load_explicit(&(x), memory_order_relaxed)
#define SET(x, value) atomic_store_explicit(&(x), value, memory_order_relaxed)

static id new_buffer(void) { return [queue commandBuffer]; }

static id make(id buffer) {
    sends("make", 0, 0);
    return [buffer computeCommandEncoder];
}
static void encode(id encoder) { [encoder setComputePipelineState:things[0]]; }
static void send_encode(id encoder) {
    sends("encode", encoder, 0);
    encode(encoder);
}
static void send_end(id encoder) {
    sends("end", encoder, 0);
    [encoder endEncoding];
}

// ---------------------------------------------------------------- each guarded method, by two threads in turn

struct Objects {
    id buffer, compute, blit, ended[4];
};
static struct Objects objects[2];
static const UInt offsets[1] = {7};

#define EACH(X)                                                                                                        \
    X("computeCommandEncoder", (void)[o->buffer computeCommandEncoder])                                                \
    X("computeCommandEncoderWithDispatchType:", (void)[o->buffer computeCommandEncoderWithDispatchType:1])             \
    X("computeCommandEncoderWithDescriptor:", (void)[o->buffer computeCommandEncoderWithDescriptor:things[1]])         \
    X("blitCommandEncoder", (void)[o->buffer blitCommandEncoder])                                                      \
    X("blitCommandEncoderWithDescriptor:", (void)[o->buffer blitCommandEncoderWithDescriptor:things[2]])               \
    X("enqueue", [o->buffer enqueue])                                                                                  \
    X("encodeSignalEvent:value:", [o->buffer encodeSignalEvent:things[3] value:1ull << 40])                            \
    X("encodeWaitForEvent:value:", [o->buffer encodeWaitForEvent:things[4] value:1ull << 41])                          \
    X("setComputePipelineState:", [o->compute setComputePipelineState:things[5]])                                      \
    X("setBuffer:offset:atIndex:", [o->compute setBuffer:things[6] offset:11 atIndex:12])                              \
    X("setBuffers:offsets:withRange:", [o->compute setBuffers:things offsets:offsets withRange:(Range){13, 14}])       \
    X("setBufferOffset:atIndex:", [o->compute setBufferOffset:15 atIndex:16])                                          \
    X("setBytes:length:atIndex:", [o->compute setBytes:"bytes" length:17 atIndex:18])                                  \
    X("setTexture:atIndex:", [o->compute setTexture:things[7] atIndex:19])                                             \
    X("setThreadgroupMemoryLength:atIndex:", [o->compute setThreadgroupMemoryLength:20 atIndex:21])                    \
    X("useResource:usage:", [o->compute useResource:things[8] usage:22])                                               \
    X("useResources:count:usage:", [o->compute useResources:things count:23 usage:24])                                 \
    X("useHeap:", [o->compute useHeap:things[9]])                                                                      \
    X("memoryBarrierWithScope:", [o->compute memoryBarrierWithScope:25])                                               \
    X("memoryBarrierWithResources:count:", [o->compute memoryBarrierWithResources:things count:26])                    \
    X("dispatchThreads:threadsPerThreadgroup:",                                                                        \
      [o->compute dispatchThreads:(Size){27, 28, 29} threadsPerThreadgroup:(Size){30, 31, 32}])                        \
    X("dispatchThreadgroups:threadsPerThreadgroup:",                                                                   \
      [o->compute dispatchThreadgroups:(Size){33, 34, 35} threadsPerThreadgroup:(Size){36, 37, 38}])                   \
    X("dispatchThreadgroupsWithIndirectBuffer:indirectBufferOffset:threadsPerThreadgroup:",                            \
      [o->compute dispatchThreadgroupsWithIndirectBuffer:things[10]                                                    \
                                    indirectBufferOffset:39                                                            \
                                   threadsPerThreadgroup:(Size){40, 41, 42}])                                          \
    X("updateFence:", [o->compute updateFence:things[11]])                                                             \
    X("updateFence: of a blit encoder", [o->blit updateFence:things[11]])                                              \
    X("waitForFence:", [o->blit waitForFence:things[12]])                                                              \
    X("fillBuffer:range:value:", [o->blit fillBuffer:things[13] range:(Range){43, 44} value:200])                      \
    X("copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:",                                                  \
      [o->blit copyFromBuffer:things[14] sourceOffset:45 toBuffer:things[15] destinationOffset:46 size:47])            \
    X("synchronizeResource:", [o->blit synchronizeResource:things[0]])                                                 \
    X("destroyImpl", [o->ended[0] destroyImpl])                                                                        \
    X("deferredEndEncoding", [o->ended[1] deferredEndEncoding])                                                        \
    X("dealloc", [o->ended[2] release])                                                                                \
    X("endEncoding", [o->compute endEncoding])                                                                         \
    X("endEncoding of a blit encoder", [o->blit endEncoding])                                                          \
    X("commit", [o->buffer commit])

static void call(int which, struct Objects *o) {
    int at = 0;
#define CALL(name, ...)                                                                                                \
    if (which == at++) __VA_ARGS__;
    EACH(CALL)
}

static const char *const each_name[] = {
#define NAME(name, ...) name,
    EACH(NAME)};
enum { CASES = sizeof each_name / sizeof *each_name };

static void make_objects(void) {
    for (int i = 0; i < 2; i++) {
        struct Objects *o = &objects[i];
        o->buffer = new_buffer();
        o->compute = [o->buffer computeCommandEncoder];
        o->blit = [o->buffer blitCommandEncoder];
        for (int at = 0; at < 4; at++) o->ended[at] = [o->buffer computeCommandEncoder];
    }
}

static void *each(void *number) {
    int me = *(int *)number;
    for (int i = 0; i < CASES; i++) {
        if (me == 2) wait_for_mark(2 * i);
        call(i, &objects[me - 1]);
        mark(2 * i + me - 1);
        if (me == 1) wait_for_mark(2 * i + 1);
    }
    return 0;
}

static void print_argument(const char *text) { printf("argument %s\n", text); }

static void arguments(void) {
    tell_arguments = print_argument;
    for (int i = 0; i < CASES; i++) call(i, &objects[0]);
    tell_arguments = 0;
}

// ---------------------------------------------------------------- scenes

// One thread encodes; while it is inside the driver, another ends the encoder.
static void *destroy(void *number) {
    if (*(int *)number == 1) {
        SET(shared, make(shared_buffer));
        stay_for(2);
        send_encode((id)GET(shared));
    } else {
        wait_for_stay(1);
        send_end((id)GET(shared));
    }
    return 0;
}

// Two threads make encoders at once, then each uses its own.
static void *makes(void *number) {
    int me = *(int *)number;
    if (me == 1) stay_for(2);
    else wait_for_stay(1);
    id encoder = make(objects[me - 1].buffer);
    mark(me);
    wait_for_mark(3 - me);
    send_encode(encoder);
    send_end(encoder);
    return 0;
}

// Two threads end encoders of their own at once.
static void *ends(void *number) {
    int me = *(int *)number;
    if (me == 2) wait_for_mark(0);
    id encoder = make(objects[me - 1].buffer);
    if (me == 1) {
        mark(0);
        wait_for_mark(1);
        stay_for(2);
    } else {
        mark(1);
        wait_for_stay(1);
    }
    send_end(encoder);
    return 0;
}

// One thread has an encoder in hand; before it goes on, another ends it.
static void last_use(void *number, const char *use, int released) {
    if (*(int *)number == 1) {
        SET(shared, make(shared_buffer));
        id encoder = (id)GET(shared);
        sends(use, encoder, 0);
        mark(1);
        wait_for_mark(2);
        if (strcmp(use, "end") == 0) [encoder endEncoding];
        else encode(encoder);
    } else {
        wait_for_mark(1);
        send_end((id)GET(shared));
        if (released) [(id)GET(shared) release];
        mark(2);
    }
}
static void *stale(void *number) {
    last_use(number, "encode", 0);
    return 0;
}
static void *twice(void *number) {
    last_use(number, "end", 0);
    return 0;
}
static void *freed(void *number) {
    last_use(number, "encode", 1);
    return 0;
}

// As "stale", but several others have ended since.
static void *older(void *number) {
    if (*(int *)number == 1) {
        SET(shared, make(shared_buffer));
        id encoder = (id)GET(shared);
        sends("encode", encoder, 0);
        mark(1);
        wait_for_mark(2);
        encode(encoder);
    } else {
        wait_for_mark(1);
        send_end((id)GET(shared));
        for (int i = 0; i < 3; i++) send_end(make(objects[0].buffer));
        mark(2);
    }
    return 0;
}

// The driver hands out an encoder again that has ended: it is open.
static void *again(void *number) {
    (void)number;
    id encoder = make(shared_buffer);
    send_encode(encoder);
    send_end(encoder);
    reopened = encoder;
    if ([shared_buffer computeCommandEncoderWithDescriptor:descriptor_that_reopens] != encoder) fail("not reopened");
    encode(encoder);
    [encoder endEncoding];
    return 0;
}

// A process forks while another thread is inside the driver; the child has that thread's lock, but not the thread.
static void *forks(void *number) {
    if (*(int *)number == 1) {
        id encoder = make(shared_buffer);
        wait_for_mark(0);
        stay_for(2);
        send_encode(encoder);
    } else {
        id encoder = make(objects[0].buffer);
        mark(0);
        wait_for_stay(1);
        pid_t child = fork();
        if (child == 0) {
            begin_child();
            send_encode(encoder);
            _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (status != 0) fail("deadlock: the forked child did not get through");
        send_encode(encoder);
    }
    return 0;
}

static void *nested(void *number) {
    (void)number;
    id encoder = make(shared_buffer);
    send_encode(encoder);
    send_end(encoder);
    return 0;
}

// A method raises an exception; another thread goes on.
static void *throws(void *number) {
    if (*(int *)number == 1) {
        int caught = 0;
        @try {
            [objects[0].compute setTexture:texture_that_raises atIndex:0];
        } @catch (id raised) {
            caught = raised == texture_that_raises;
        }
        if (!caught) fail("the exception did not arrive");
        mark(0);
    } else {
        wait_for_mark(0);
        encode(objects[1].compute);
    }
    return 0;
}

// One thread commits and waits for the GPU; its completion handler, on another thread, uses the driver.
static void *waits(void *number) {
    if (*(int *)number == 1) {
        sends("commit", shared_buffer, 0);
        [shared_buffer commit];
        mark(0);
        sends("wait", shared_buffer, 0);
        [shared_buffer waitUntilCompleted];
    } else {
        wait_for_mark(0);
        sends("handle", shared_buffer, 1);
        [shared_buffer encodeSignalEvent:things[0] value:1];
    }
    return 0;
}

// More encoders than the guard keeps.
static void *forgets(void *number) {
    (void)number;
    for (int i = 0; i < 66; i++) {
        id encoder = make(shared_buffer);
        send_end(encoder);
        [encoder release];
    }
    return 0;
}

// Threads that run freely. What they share is published under a lock of the scene, so that no ended one is taken.
enum { WORKERS = 4, ROUNDS = 6 };
static atomic_flag publishing = ATOMIC_FLAG_INIT;
static void publish_lock(void) {
    while (atomic_flag_test_and_set_explicit(&publishing, memory_order_relaxed)) {}
}
static void publish_unlock(void) { atomic_flag_clear_explicit(&publishing, memory_order_relaxed); }

static void *work(void *number) {
    int me = *(int *)number;
    for (int round = 0; round < ROUNDS; round++) {
        id encoder = make(objects[0].buffer);
        publish_lock();
        SET(shared, encoder);
        publish_unlock();
        send_encode(encoder);
        publish_lock();
        id theirs = (id)GET(shared);
        if (theirs) sends("encode", theirs, 0);
        publish_unlock();
        if (theirs) encode(theirs);
        publish_lock();
        if ((id)GET(shared) == encoder) SET(shared, 0);
        sends("end", encoder, 0);
        publish_unlock();
        [encoder endEncoding];
        if ((me + round) % 3 == 0) [encoder release];
    }
    return 0;
}

// ---------------------------------------------------------------- installing

static struct {
    Class class;
    SEL selector;
    IMP method;
} found[1024];
static int found_count;

// Notes what each class does with each message that any of them understands.
static void find_methods(void) {
    static const char *const classes[] = {"Root", "Encoder", "ComputeEncoder", "BlitEncoder", "CommandBuffer"};
    for (int c = 0; c < 5; c++) {
        unsigned count;
        Method *methods = class_copyMethodList(objc_getClass(classes[c]), &count);
        for (int d = 0; d < 5; d++)
            for (unsigned i = 0; i < count; i++) {
                Class class = objc_getClass(classes[d]);
                SEL selector = method_getName(methods[i]);
                Method method = class_getInstanceMethod(class, selector);
                if (!method) continue;
                if (found_count == 1024) fail("too many methods");
                found[found_count].class = class;
                found[found_count].selector = selector;
                found[found_count++].method = method_getImplementation(method);
            }
        free(methods);
    }
}

static void compare_methods(void) {
    for (int i = 0; i < found_count; i++)
        if (class_getMethodImplementation(found[i].class, found[i].selector) != found[i].method) {
            fprintf(stderr, "-[%s %s] stays replaced\n", class_getName(found[i].class), sel_getName(found[i].selector));
            fail("uninstalling left a method replaced");
        }
}

static IMP other;
static void replaced_again(id self, SEL command) { ((void (*)(id, SEL))other)(self, command); }

static void uninstall(void) {
    // Those that were open before it was installed are not its business.
    char why[256] = "";
    find_methods();
    int first = steel_guard_install(why, sizeof why);
    if (first < 30 || steel_guard_install(why, sizeof why) != first) fail("installing twice is not the same as once");
    id encoder = [shared_buffer computeCommandEncoder];
    if (steel_guard_uninstall(why, sizeof why) == 0 || !strstr(why, "1 encoders are open"))
        fail("uninstalled beside an open encoder");
    [encoder endEncoding];
    Method commit = class_getInstanceMethod(objc_getClass("CommandBuffer"), @selector(commit));
    other = method_setImplementation(commit, (IMP)replaced_again);
    if (steel_guard_uninstall(why, sizeof why) == 0 || !strstr(why, "commit"))
        fail("uninstalled below another replacement");
    method_setImplementation(commit, other);
    if (steel_guard_uninstall(why, sizeof why) != 0) fail(why);
    compare_methods();
    long before[3], after[3];
    steel_guard_statistics(before);
    send_encode([shared_buffer computeCommandEncoder]);
    steel_guard_statistics(after);
    if (after[0] != before[0]) fail("a call went through the guard that is uninstalled");
    if (steel_guard_install(why, sizeof why) != first) fail("it can't be installed again");
    send_encode([shared_buffer computeCommandEncoder]);
    steel_guard_statistics(after);
    if (after[0] != before[0] + 2) fail("installed again, it does not guard");
}

static const struct {
    const char *name;
    int threads;
    void *(*body)(void *);
} scenes[] = {
    {"each", 2, each},     {"destroy", 2, destroy}, {"makes", 2, makes},   {"ends", 2, ends},
    {"stale", 2, stale},   {"twice", 2, twice},     {"freed", 2, freed},   {"nested", 1, nested},
    {"throws", 2, throws}, {"waits", 2, waits},     {"forgets", 1, forgets}, {"work", WORKERS, work},
    {"older", 2, older},   {"again", 1, again},     {"forks", 2, forks},
};

int main(int count, char **values) {
    if (count < 3) return 2;
    if (strcmp(values[1], "list") == 0) {
        for (int i = 0; i < CASES; i++) printf("%s\n", each_name[i]);
        return 0;
    }
    device = MTLCreateSystemDefaultDevice();
    queue = [device newCommandQueue];
    shared_buffer = new_buffer();
    for (int i = 0; i < 16; i++) things[i] = (id)(0x1000ul + (unsigned long)i);
    texture_that_raises = [Device alloc];
    descriptor_that_reopens = [Device alloc];
    char why[256] = "";
    if (strcmp(values[2], "guard") == 0 && steel_guard_install(why, sizeof why) < 0) fail(why);
    make_objects();
    if (strcmp(values[1], "arguments") == 0) arguments();
    else if (strcmp(values[1], "uninstall") == 0) uninstall();
    else {
        int at = 0, known = sizeof scenes / sizeof *scenes;
        while (at < known && strcmp(scenes[at].name, values[1]) != 0) at++;
        if (at == known) return 2;
        run_threads(scenes[at].threads, scenes[at].body);
    }
    long statistics[3];
    steel_guard_statistics(statistics);
    print_events();
    printf("calls %ld\nrefused %ld\nopen %ld\n", statistics[0], statistics[1], statistics[2]);
    return 0;
}
