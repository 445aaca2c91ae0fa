//! How much memory a piece of code asks for at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Measuring;

#[global_allocator]
static MEASURING: Measuring = Measuring;

thread_local! {
    static MOST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Measuring {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = MOST.try_with(|most| most.set(most.get().max(layout.size())));
        // SAFETY: the caller keeps the promises of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises of this function.
        unsafe { System.dealloc(at, layout) }
    }
}

/// The largest single allocation of this code on this thread, in bytes.
pub fn most<T>(code: impl FnOnce() -> T) -> (usize, T) {
    MOST.set(0);
    let value = code();
    (MOST.get(), value)
}
