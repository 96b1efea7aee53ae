#include "standin.h"

#include <objc/objc-exception.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#include "events.h"

id texture_that_raises, descriptor_that_reopens, reopened;
void (*tell_arguments)(const char *text);

// The driver's books: of the process, and without a lock.
enum { RECORDS = 256 };
static struct Record records[RECORDS];
static int top;
static long commands;

static pthread_mutex_t gpu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t completion = PTHREAD_COND_INITIALIZER;
static int running; // what the GPU has not completed

__attribute__((constructor)) static void start(void) {
    for (int i = 0; i < RECORDS; i++) records[i].next = i + 1 < RECORDS ? i + 1 : -1;
}

long driver_commands(void) { return commands; }

static void told(const char *format, ...) {
    if (!tell_arguments) return;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    tell_arguments(text);
}

@implementation Root
+ (id)alloc {
    Root *made = class_createInstance((Class)self, 0);
    made->references = 1;
    return made;
}
- (id)retain {
    references++;
    return self;
}
- (void)release {
    if (--references == 0) [self dealloc];
}
- (void)dealloc {
    object_setClass(self, [Freed self]); // the memory is not used again: whoever sends it a message is found
}
@end

@implementation Freed
+ (Class)self {
    return (Class)self;
}
@end

// Work that a method does before it sends itself another message.
static void count_command(void) {
    long seen = commands;
    commands = seen + 1;
}

// The two halves of a method that changes nothing but how many there were.
static void command(id self) {
    long seen = commands;
    STEEL_EVENT("Begin", self);
    between_halves();
    commands = seen + 1;
    STEEL_EVENT("Finish", self);
}

@implementation Encoder
- (id)fromType:(const char *)type {
    int mine = top;
    long seen = commands;
    if (mine < 0) fail("the driver has no record left");
    STEEL_EVENT("Begin", self);
    between_halves();
    top = records[mine].next;
    commands = seen + 1;
    records[mine].user = self;
    _impl = &records[mine];
    told("%s", type);
    STEEL_EVENT("Finish", self);
    return self;
}
- (void)used {
    struct Record *mine = _impl;
    long seen = commands;
    STEEL_EVENT("Begin", self);
    between_halves();
    mine->uses++; // ends the process where another thread has ended the encoder
    commands = seen + 1;
    if (mine->user != self) fail("corrupt: an encoder wrote into a record that is not its own");
    STEEL_EVENT("Finish", self);
}
- (void)destroyImpl {
    struct Record *mine = _impl;
    long seen = commands;
    mine->next = top; // given back first, forgotten afterwards
    mine->user = 0;
    top = (int)(mine - records);
    STEEL_EVENT("Begin", self);
    between_halves();
    commands = seen + 1;
    _impl = 0;
    told("destroyImpl");
    STEEL_EVENT("Finish", self);
}
- (void)endEncoding {
    [self destroyImpl];
    told("endEncoding");
}
- (void)dealloc {
    count_command();
    if (_impl) [self destroyImpl];
    told("dealloc");
    [super dealloc];
}
- (void)updateFence:(id)fence {
    [self used];
    told("updateFence %p", fence);
}
- (void)waitForFence:(id)fence {
    [self used];
    told("waitForFence %p", fence);
}
@end

@implementation ComputeEncoder
- (void)deferredEndEncoding {
    count_command();
    [self destroyImpl];
    told("deferredEndEncoding");
}
- (void)updateFence:(id)fence {
    told("compute's");
    [super updateFence:fence];
}
- (void)setComputePipelineState:(id)state {
    [self used];
    told("setComputePipelineState %p", state);
}
- (void)setBuffer:(id)buffer offset:(UInt)offset atIndex:(UInt)index {
    [self used];
    told("setBuffer %p %lu %lu", buffer, offset, index);
}
- (void)setBuffers:(const id *)buffers offsets:(const UInt *)offsets withRange:(Range)range {
    [self used];
    told("setBuffers %p %lu %lu %lu", buffers[0], offsets[0], range.location, range.length);
}
- (void)setBufferOffset:(UInt)offset atIndex:(UInt)index {
    [self used];
    told("setBufferOffset %lu %lu", offset, index);
}
- (void)setBytes:(const void *)bytes length:(UInt)length atIndex:(UInt)index {
    [self used];
    told("setBytes %s %lu %lu", (const char *)bytes, length, index);
}
- (void)setTexture:(id)texture atIndex:(UInt)index {
    if (texture == texture_that_raises && texture) objc_exception_throw(texture);
    [self used];
    told("setTexture %p %lu", texture, index);
}
- (void)setThreadgroupMemoryLength:(UInt)length atIndex:(UInt)index {
    [self used];
    told("setThreadgroupMemoryLength %lu %lu", length, index);
}
- (void)useResource:(id)resource usage:(UInt)usage {
    [self used];
    told("useResource %p %lu", resource, usage);
}
- (void)useResources:(const id *)resources count:(UInt)count usage:(UInt)usage {
    [self used];
    told("useResources %p %lu %lu", resources[0], count, usage);
}
- (void)useHeap:(id)heap {
    [self used];
    told("useHeap %p", heap);
}
- (void)memoryBarrierWithScope:(UInt)scope {
    [self used];
    told("memoryBarrierWithScope %lu", scope);
}
- (void)memoryBarrierWithResources:(const id *)resources count:(UInt)count {
    [self used];
    told("memoryBarrierWithResources %p %lu", resources[0], count);
}
- (void)dispatchThreads:(Size)threads threadsPerThreadgroup:(Size)group {
    [self used];
    told("dispatchThreads %lu %lu %lu by %lu %lu %lu", threads.width, threads.height, threads.depth, group.width,
         group.height, group.depth);
}
- (void)dispatchThreadgroups:(Size)groups threadsPerThreadgroup:(Size)group {
    [self used];
    told("dispatchThreadgroups %lu %lu %lu by %lu %lu %lu", groups.width, groups.height, groups.depth, group.width,
         group.height, group.depth);
}
- (void)dispatchThreadgroupsWithIndirectBuffer:(id)buffer
                          indirectBufferOffset:(UInt)offset
                         threadsPerThreadgroup:(Size)group {
    [self used];
    told("dispatchThreadgroupsWithIndirectBuffer %p %lu by %lu %lu %lu", buffer, offset, group.width, group.height,
         group.depth);
}
@end

@implementation BlitEncoder
- (void)endEncoding { // its class and the one above both have this method
    told("blit's");
    [super endEncoding];
}
- (void)fillBuffer:(id)buffer range:(Range)range value:(unsigned char)value {
    [self used];
    told("fillBuffer %p %lu %lu %d", buffer, range.location, range.length, value);
}
- (void)copyFromBuffer:(id)from
          sourceOffset:(UInt)sourceOffset
              toBuffer:(id)to
     destinationOffset:(UInt)destinationOffset
                  size:(UInt)size {
    [self used];
    told("copyFromBuffer %p %lu %p %lu %lu", from, sourceOffset, to, destinationOffset, size);
}
- (void)synchronizeResource:(id)resource {
    [self used];
    told("synchronizeResource %p", resource);
}
@end

@implementation CommandBuffer
- (id)computeCommandEncoder {
    count_command();
    return [self computeCommandEncoderWithDispatchType:0];
}
- (id)computeCommandEncoderWithDispatchType:(UInt)type {
    told("dispatch type %lu", type);
    return [[ComputeEncoder alloc] fromType:"compute"];
}
- (id)computeCommandEncoderWithDescriptor:(id)descriptor {
    told("descriptor %p", descriptor);
    if (descriptor == descriptor_that_reopens && descriptor) return [reopened fromType:"compute"];
    return [[ComputeEncoder alloc] fromType:"compute"];
}
- (id)blitCommandEncoder {
    return [[BlitEncoder alloc] fromType:"blit"];
}
- (id)blitCommandEncoderWithDescriptor:(id)descriptor {
    told("descriptor %p", descriptor);
    return [[BlitEncoder alloc] fromType:"blit"];
}
- (void)encodeSignalEvent:(id)event value:(unsigned long long)value {
    command(self);
    told("encodeSignalEvent %p %llu", event, value);
    // In a scene, the handler of what was committed: it completes it.
    pthread_mutex_lock(&gpu);
    running = 0;
    pthread_cond_broadcast(&completion);
    pthread_mutex_unlock(&gpu);
}
- (void)encodeWaitForEvent:(id)event value:(unsigned long long)value {
    command(self);
    told("encodeWaitForEvent %p %llu", event, value);
}
- (void)enqueue {
    command(self);
    told("enqueue");
}
- (void)commit {
    pthread_mutex_lock(&gpu);
    running = 1;
    pthread_mutex_unlock(&gpu);
    command(self);
    told("commit");
}
- (void)waitUntilCompleted {
    STEEL_EVENT("Begin", self);
    pthread_mutex_lock(&gpu);
    while (running) pthread_cond_wait(&completion, &gpu);
    pthread_mutex_unlock(&gpu);
    STEEL_EVENT("Finish", self);
}
@end

@implementation Queue
- (id)commandBuffer {
    return [CommandBuffer alloc];
}
@end

@implementation Device
- (id)newCommandQueue {
    return [Queue alloc];
}
@end

id MTLCreateSystemDefaultDevice(void) { return [Device alloc]; }
