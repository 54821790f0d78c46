//! System calls that go past the door.

use std::arch::asm;
use std::ffi::c_long;

/// Calls the kernel. A result in `-4095..0` is an error number, negated.
///
/// # Safety
/// As unsafe as the system call itself.
pub unsafe fn call(number: c_long, args: [usize; 6]) -> isize {
    let result;
    // SAFETY: the kernel's calling convention; it changes nothing but these registers.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// As C does it: -1, and the reason in `errno`.
pub fn as_c(result: isize) -> c_long {
    if (-4095..0).contains(&result) { fail(-result as i32) as c_long } else { result as c_long }
}

pub fn fail(error: i32) -> i32 {
    // SAFETY: the C library's own place of this thread's error number.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// Ends everything at once, without destructors.
pub fn exit(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}
