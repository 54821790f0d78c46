//! How a turn is handed on without the kernel.
//!
//! Every thread is a real one, made by the C library with its stack and its thread-local values.
//! It runs for real until its first words, leaves its registers on its stack, and waits in the
//! kernel. From then on one thread of the kernel, the run's first, is whoever has the baton: it
//! takes over stack, registers and the base of thread-local values (`fs`). With a wake, a wait and
//! the kernel's own switch instead, a run takes a third longer. When a thread is over, its real one
//! gets its registers back, and ends as the C library has it.
//!
//! The kernel sees one thread do everything: its number, priority and signal stack are everybody's.
//! A debugger sees the stack of who has the baton only.

use super::raw;
use std::arch::naked_asm;
use std::sync::atomic::{AtomicU32, Ordering};

/// What is left of a thread that does not run.
#[derive(Debug)]
pub struct Context {
    /// Its stack's top; the registers that a call keeps lie there.
    sp: usize,
    /// Not zero: the real thread goes on by itself.
    is_released: AtomicU32,
    has_arrived: AtomicU32,
}

impl Context {
    pub fn new() -> Context {
        Context { sp: 0, is_released: AtomicU32::new(0), has_arrived: AtomicU32::new(0) }
    }
}

/// Leaves the registers in `from`, and goes on where `to` left its own. `fs` belongs to `to`.
///
/// # Safety
/// `to` was left by this function or by [`arrive`], nobody has gone on there since, and both
/// contexts stay where they are.
pub unsafe fn switch(from: *mut Context, to: *const Context, fs: usize) {
    // SAFETY: the caller's promise.
    unsafe { switch_to(&raw mut (*from).sp, (*to).sp, fs) }
}

/// Called by a real thread: leaves its registers in `context` and waits in the kernel. Returns to
/// whoever switches here first; the real thread goes on only after [`release`], from where the
/// context was left last.
///
/// # Safety
/// `context` stays where it is, and is this thread's own.
pub unsafe fn arrive(context: *mut Context) {
    // SAFETY: the caller's promise.
    unsafe {
        let (sp, context) = (&raw mut (*context).sp, &*context);
        park(sp, context.has_arrived.as_ptr(), context.is_released.as_ptr());
    }
}

/// Waits for real until a new thread has arrived.
pub fn await_arrival(context: &Context) {
    while context.has_arrived.load(Ordering::Acquire) == 0 {
        let word = context.has_arrived.as_ptr() as usize;
        // SAFETY: a futex on a word that outlives the call.
        unsafe { raw::call(libc::SYS_futex, [word, libc::FUTEX_WAIT as usize, 0, 0, 0, 0]) };
    }
}

/// Lets the real thread go on where the context was left, beside everybody else.
pub fn release(context: &Context) {
    context.is_released.store(1, Ordering::Release);
    let word = context.is_released.as_ptr() as usize;
    // SAFETY: as above.
    unsafe { raw::call(libc::SYS_futex, [word, libc::FUTEX_WAKE as usize, 1, 0, 0, 0]) };
}

// rdi: where to leave the stack's top; rsi: the other's; rdx: the other's thread-local values.
#[unsafe(naked)]
unsafe extern "C" fn switch_to(sp: *mut usize, to: usize, fs: usize) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "mov edi, {set_fs}",
        "mov rsi, rdx",
        "mov eax, {arch_prctl}",
        "syscall",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        set_fs = const 0x1002,
        arch_prctl = const libc::SYS_arch_prctl,
    )
}

// rdi: where to leave the stack's top; rsi: set when it is left; rdx: waited for. From the moment
// that rsi's word is set the stack may be another's: nothing here touches it until the end.
#[unsafe(naked)]
unsafe extern "C" fn park(sp: *mut usize, has_arrived: *mut u32, is_released: *mut u32) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov r12, rdi",
        "mov r13, rdx",
        "mov dword ptr [rsi], 1",
        "mov rdi, rsi",
        "mov esi, {wake}",
        "mov edx, 1",
        "mov eax, {futex}",
        "syscall",
        "2:",
        "mov rdi, r13",
        "mov esi, {wait}",
        "xor edx, edx",
        "xor r10d, r10d",
        "mov eax, {futex}",
        "syscall",
        "cmp dword ptr [r13], 0",
        "je 2b",
        "mov rsp, [r12]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        futex = const libc::SYS_futex,
        wait = const libc::FUTEX_WAIT,
        wake = const libc::FUTEX_WAKE,
    )
}
