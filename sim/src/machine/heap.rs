//! Memory at the same addresses in every run.
//!
//! Programs hash addresses (parking_lot finds a lock's queue that way), so what is allocated where
//! must follow from the seed alone. The C library's heap and thread stacks do not serve: threads
//! give theirs back as they end, which is in real time. Here the heap is one long run of memory
//! with a list of free blocks for each size, and each thread has a place for its stack by its
//! number. Nothing is given back to the system before the run ends.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

/// Far from where the system puts things by itself.
const HEAP_START: usize = 0x1000_0000_0000;
const HEAP_BYTES: usize = 256 << 30;
/// More than a process needs before its run begins.
const BEFORE_BYTES: usize = 1 << 30;
const STACKS_START: usize = 0x2000_0000_0000;
/// The place for one stack, of which the thread uses what it asked for.
const STACK_BYTES: usize = 64 << 20;

/// Blocks up to this size come in steps of 16 bytes; larger ones in quarters of a power of two.
const SMALL_BYTES: usize = 1024;
const N_SMALL: usize = SMALL_BYTES / 16;
const N_CLASSES: usize = N_SMALL + 4 * 40;

pub struct Heap {
    is_taken: AtomicBool,
    state: UnsafeCell<State>,
}

struct State {
    next: usize,
    /// Blocks below are from before the run, and are not used again.
    run_start: usize,
    /// The first free block of each class; each holds the address of the next.
    free: [usize; N_CLASSES],
    /// The same for blocks that begin at multiples of their size.
    free_aligned: [usize; 40],
}

// SAFETY: `is_taken` guards the state.
unsafe impl Sync for Heap {}

impl Heap {
    pub const fn new() -> Heap {
        let state = State { next: 0, run_start: 0, free: [0; N_CLASSES], free_aligned: [0; 40] };
        Heap { is_taken: AtomicBool::new(false), state: UnsafeCell::new(state) }
    }

    /// From now on nothing depends on what this process did before, such as how it was called.
    pub fn begin_run(&self) {
        self.with(|state| {
            state.next = state.next.max(HEAP_START).next_multiple_of(BEFORE_BYTES);
            state.run_start = state.next;
            state.free = [0; N_CLASSES];
            state.free_aligned = [0; 40];
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        // Only before the first turn and after the last can anybody else be here.
        while self.is_taken.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: taken above.
        let result = work(unsafe { &mut *self.state.get() });
        self.is_taken.store(false, Ordering::Release);
        result
    }
}

/// The class of a size, and the size of its blocks.
fn class_of(bytes: usize) -> (usize, usize) {
    if bytes <= SMALL_BYTES {
        let steps = bytes.div_ceil(16).max(1);
        return (steps - 1, steps * 16);
    }
    // 1024 < bytes: four classes between one power of two and the next.
    let power = usize::BITS as usize - 1 - (bytes - 1).leading_zeros() as usize;
    let quarter = 1 << (power - 2);
    let steps = (bytes - (1 << power)).div_ceil(quarter);
    (N_SMALL + (power - 10) * 4 + steps - 1, (1 << power) + steps * quarter)
}

impl State {
    fn take(&mut self, bytes: usize, align: usize) -> usize {
        if self.next == 0 {
            map(HEAP_START, HEAP_BYTES);
            self.next = HEAP_START;
        }
        let at = self.next.next_multiple_of(align);
        self.next = at + bytes;
        if self.next > HEAP_START + HEAP_BYTES { 0 } else { at }
    }

    fn list(&mut self, layout: &Layout) -> (&mut usize, usize) {
        if layout.align() > 16 {
            let bytes = layout.size().max(layout.align()).next_power_of_two();
            (&mut self.free_aligned[bytes.trailing_zeros() as usize], bytes)
        } else {
            let (class, bytes) = class_of(layout.size());
            (&mut self.free[class], bytes)
        }
    }
}

// SAFETY: blocks are as large and aligned as asked, and are on a free list only while nobody
// has them.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.with(|state| {
            let (list, bytes) = state.list(&layout);
            let first = *list;
            if first != 0 {
                // SAFETY: a free block holds the address of the next.
                *list = unsafe { *(first as *const usize) };
                return first as *mut u8;
            }
            let align = if layout.align() > 16 { bytes.min(1 << 21) } else { 16 };
            match state.take(bytes, align.max(layout.align())) {
                0 => null_mut(),
                at => at as *mut u8,
            }
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.with(|state| {
            if (block as usize) < state.run_start {
                return;
            }
            let (list, _) = state.list(&layout);
            // SAFETY: the block is the caller's to give, and holds at least 16 bytes.
            unsafe { *block.cast::<usize>() = *list };
            *list = block as usize;
        });
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if layout.align() <= 16 && class_of(layout.size()) == class_of(bytes) {
            return block;
        }
        // SAFETY: as the caller promises.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(bytes, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(bytes));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Memory that becomes real where it is touched.
fn map(at: usize, bytes: usize) {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: replaces nothing.
    let mapped = unsafe { libc::mmap(at as *mut _, bytes, access, flags, -1, 0) };
    if mapped as usize != at {
        super::threads::stop("memory at a fixed address is not to be had");
    }
}

/// The stack of the thread with this number: its lowest address, and its size.
pub fn stack(id: usize, bytes: usize) -> (usize, usize) {
    let bytes = bytes.min(STACK_BYTES - 4096);
    let top = STACKS_START + (id + 1) * STACK_BYTES;
    map(top - bytes, bytes);
    (top - bytes, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_what_was_asked_and_classes_grow() {
        let mut before = (0, 0);
        for bytes in 1..200_000 {
            let (class, size) = class_of(bytes);
            assert!(size >= bytes && size <= bytes + bytes / 4 + 16, "{bytes}: {size}");
            assert!((class, size) >= before, "{bytes}");
            assert!(class == before.0 || class == before.0 + 1 || bytes == 1, "{bytes}");
            before = (class, size);
        }
        assert!(class_of(1 << 40).0 < N_CLASSES);
    }
}
