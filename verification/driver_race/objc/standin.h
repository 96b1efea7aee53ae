// A stand-in of the GPU driver: Metal's method names, and the books that Apple's driver is said to keep without a lock.
#pragma once
#include <objc/runtime.h>

typedef unsigned long UInt;
typedef struct { UInt width, height, depth; } Size;
typedef struct { UInt location, length; } Range;

struct Record {
    int next; // of the free ones; -1 for none
    id user;
    long uses;
};

__attribute__((objc_root_class)) @interface Root {
    Class isa;
    _Atomic int references;
}
+ (id)alloc;
- (id)retain;
- (void)release;
- (void)dealloc;
@end

// What an object is when its memory was given back; it understands nothing.
__attribute__((objc_root_class)) @interface Freed {
    Class isa;
}
+ (Class)self;
@end

@interface Encoder : Root {
    struct Record *_impl;
}
- (void)endEncoding;
- (void)destroyImpl;
- (void)updateFence:(id)fence;
- (void)waitForFence:(id)fence;
@end

@interface ComputeEncoder : Encoder
- (void)deferredEndEncoding;
- (void)setComputePipelineState:(id)state;
- (void)setBuffer:(id)buffer offset:(UInt)offset atIndex:(UInt)index;
- (void)setBuffers:(const id *)buffers offsets:(const UInt *)offsets withRange:(Range)range;
- (void)setBufferOffset:(UInt)offset atIndex:(UInt)index;
- (void)setBytes:(const void *)bytes length:(UInt)length atIndex:(UInt)index;
- (void)setTexture:(id)texture atIndex:(UInt)index;
- (void)setThreadgroupMemoryLength:(UInt)length atIndex:(UInt)index;
- (void)useResource:(id)resource usage:(UInt)usage;
- (void)useResources:(const id *)resources count:(UInt)count usage:(UInt)usage;
- (void)useHeap:(id)heap;
- (void)memoryBarrierWithScope:(UInt)scope;
- (void)memoryBarrierWithResources:(const id *)resources count:(UInt)count;
- (void)dispatchThreads:(Size)threads threadsPerThreadgroup:(Size)group;
- (void)dispatchThreadgroups:(Size)groups threadsPerThreadgroup:(Size)group;
- (void)dispatchThreadgroupsWithIndirectBuffer:(id)buffer
                          indirectBufferOffset:(UInt)offset
                         threadsPerThreadgroup:(Size)group;
@end

@interface BlitEncoder : Encoder
- (void)fillBuffer:(id)buffer range:(Range)range value:(unsigned char)value;
- (void)copyFromBuffer:(id)from
          sourceOffset:(UInt)sourceOffset
              toBuffer:(id)to
     destinationOffset:(UInt)destinationOffset
                  size:(UInt)size;
- (void)synchronizeResource:(id)resource;
@end

@interface CommandBuffer : Root
- (id)computeCommandEncoder;
- (id)computeCommandEncoderWithDispatchType:(UInt)type;
- (id)computeCommandEncoderWithDescriptor:(id)descriptor;
- (id)blitCommandEncoder;
- (id)blitCommandEncoderWithDescriptor:(id)descriptor;
- (void)encodeSignalEvent:(id)event value:(unsigned long long)value;
- (void)encodeWaitForEvent:(id)event value:(unsigned long long)value;
- (void)enqueue;
- (void)commit;
- (void)waitUntilCompleted;
@end

@interface Queue : Root
- (id)commandBuffer;
@end

@interface Device : Root
- (id)newCommandQueue;
@end

id MTLCreateSystemDefaultDevice(void);

// The texture for which setTexture:atIndex: raises an exception.
extern id texture_that_raises;
// The descriptor for which `reopened`, an encoder that has ended, is handed out once more.
extern id descriptor_that_reopens, reopened;
// Where each method writes the arguments that reached it, or 0.
extern void (*tell_arguments)(const char *text);
// How many methods of the driver have run.
long driver_commands(void);
