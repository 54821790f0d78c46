//! The C library's functions through which a program meets time, chance, other threads and disks.
//!
//! Defined here under their own names, they are what every call in this binary is bound to.
//! Threads that take no turns (before the machine begins, or after a thread's end) pass through
//! to the kernel.

use super::clock::now_ns;
use super::context::Context;
use super::raw::{as_c, call, fail};
use super::threads::{self, takes_turns};
use super::{disk, heap};
use libc::timespec;
use libc::{c_char, c_int, c_long, c_uint, c_void, clockid_t, off64_t, pthread_t, size_t, ssize_t};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

const S: u64 = 1_000_000_000;
const NEVER: u64 = u64::MAX;

fn ns_of(time: &timespec) -> u64 {
    (time.tv_sec.max(0) as u64).saturating_mul(S).saturating_add(time.tv_nsec as u64)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    if !takes_turns() {
        // SAFETY: the caller's own arguments.
        let result =
            unsafe { call(libc::SYS_clock_gettime, [clock as usize, time as usize, 0, 0, 0, 0]) };
        return as_c(result) as c_int;
    }
    let mine = threads::my_clock();
    let ns = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => mine.wall_ns(now_ns()).max(0) as u64,
        _ => mine.monotonic_ns(now_ns()),
    };
    // SAFETY: the caller gives a place for the answer.
    unsafe { *time = timespec { tv_sec: (ns / S) as _, tv_nsec: (ns % S) as _ } };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, len: size_t, flags: c_uint) -> ssize_t {
    if !takes_turns() {
        let args = [buffer as usize, len, flags as usize, 0, 0, 0];
        // SAFETY: the caller's own arguments.
        return as_c(unsafe { call(libc::SYS_getrandom, args) }) as ssize_t;
    }
    // SAFETY: the caller gives a buffer of this length.
    threads::random(unsafe { std::slice::from_raw_parts_mut(buffer.cast(), len) });
    len as ssize_t
}

/// The general door. Futexes are what locks, conditions and parked threads wait on.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    if !takes_turns() {
        // SAFETY: the caller's own arguments.
        return as_c(unsafe { call(number, [a, b, c, d, e, f]) });
    }
    match number {
        libc::SYS_futex => {
            // SAFETY: the caller's own arguments.
            unsafe { futex(a, b as c_int, c as u32, d as *const timespec) as c_long }
        }
        libc::SYS_getrandom => {
            // SAFETY: the caller gives a buffer of this length.
            threads::random(unsafe { std::slice::from_raw_parts_mut(a as *mut u8, b) });
            b as c_long
        }
        // SAFETY: the caller's own arguments.
        _ => as_c(unsafe { call(number, [a, b, c, d, e, f]) }),
    }
}

/// # Safety
/// `address` is a futex word. For a wait, `timeout` is null or a time; else it is nothing at all.
unsafe fn futex(address: usize, operation: c_int, value: u32, timeout: *const timespec) -> c_int {
    let kind = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    match kind {
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            threads::futex_wake(address, value as usize) as c_int
        }
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            // SAFETY: as the caller promises.
            let (word, timeout) =
                unsafe { (&*(address as *const AtomicU32), timeout.as_ref().map(ns_of)) };
            if word.load(Ordering::SeqCst) != value {
                return fail(libc::EAGAIN);
            }
            let clock = threads::my_clock();
            let deadline = match timeout {
                None => NEVER,
                Some(ns) if kind == libc::FUTEX_WAIT => {
                    clock.true_ns(clock.monotonic_ns(now_ns()).saturating_add(ns))
                }
                Some(ns) => clock.true_ns(ns),
            };
            if deadline <= now_ns() {
                return fail(libc::ETIMEDOUT);
            }
            if threads::futex_wait(address, deadline) { 0 } else { fail(libc::ETIMEDOUT) }
        }
        _ => threads::stop("a futex operation that the machine does not know"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nanosleep(time: *const timespec, left: *mut timespec) -> c_int {
    if !takes_turns() {
        let args = [time as usize, left as usize, 0, 0, 0, 0];
        // SAFETY: the caller's own arguments.
        return as_c(unsafe { call(libc::SYS_nanosleep, args) }) as c_int;
    }
    let clock = threads::my_clock();
    // SAFETY: the caller gives a time.
    let ns = unsafe { ns_of(&*time) };
    threads::sleep_until(clock.true_ns(clock.monotonic_ns(now_ns()).saturating_add(ns)));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_nanosleep(
    which: clockid_t,
    flags: c_int,
    time: *const timespec,
    left: *mut timespec,
) -> c_int {
    if !takes_turns() {
        let args = [which as usize, flags as usize, time as usize, left as usize, 0, 0];
        // SAFETY: the caller's own arguments.
        return -unsafe { call(libc::SYS_clock_nanosleep, args) } as c_int;
    }
    let clock = threads::my_clock();
    // SAFETY: the caller gives a time.
    let ns = unsafe { ns_of(&*time) };
    let shown = if flags & libc::TIMER_ABSTIME == 0 {
        clock.monotonic_ns(now_ns()).saturating_add(ns)
    } else {
        ns
    };
    threads::sleep_until(clock.true_ns(shown));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_yield() -> c_int {
    if takes_turns() {
        threads::give_way();
    } else {
        // SAFETY: no arguments.
        unsafe { call(libc::SYS_sched_yield, [0; 6]) };
    }
    0
}

type Main = extern "C" fn(*mut c_void) -> *mut c_void;
type Create =
    unsafe extern "C" fn(*mut pthread_t, *const libc::pthread_attr_t, Main, *mut c_void) -> c_int;
type Join = unsafe extern "C" fn(pthread_t, *mut *mut c_void) -> c_int;

/// The C library's own function of that name.
fn real(name: &'static std::ffi::CStr, kept: &AtomicUsize) -> usize {
    let known = kept.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: a terminated name.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast::<c_char>()) } as usize;
    if found == 0 {
        threads::stop("the C library lacks a function");
    }
    kept.store(found, Ordering::Relaxed);
    found
}

static CREATE: AtomicUsize = AtomicUsize::new(0);
static JOIN: AtomicUsize = AtomicUsize::new(0);

struct Beginning {
    id: usize,
    context: *mut Context,
    main: Main,
    argument: *mut c_void,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    handle: *mut pthread_t,
    attributes: *const libc::pthread_attr_t,
    main: Main,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: the C library's function of this name has this type.
    let create: Create = unsafe { std::mem::transmute(real(c"pthread_create", &CREATE)) };
    if !takes_turns() {
        // SAFETY: the caller's own arguments.
        return unsafe { create(handle, attributes, main, argument) };
    }
    let (id, context) = threads::enter();
    let beginning = Box::into_raw(Box::new(Beginning { id, context, main, argument }));
    // SAFETY: the caller's own arguments, a stack of our own, and a main of the same type.
    let result = unsafe {
        let mut own = std::mem::MaybeUninit::<libc::pthread_attr_t>::zeroed();
        libc::pthread_attr_init(own.as_mut_ptr());
        let mut stack_bytes = 2 << 20;
        if !attributes.is_null() {
            libc::pthread_attr_getstacksize(attributes, &mut stack_bytes);
        }
        let (low, stack_bytes) = heap::stack(id, stack_bytes);
        libc::pthread_attr_setstack(own.as_mut_ptr(), low as *mut c_void, stack_bytes);
        let result = create(handle, own.as_ptr(), first_turn, beginning.cast());
        libc::pthread_attr_destroy(own.as_mut_ptr());
        result
    };
    if result == 0 {
        // SAFETY: filled by the call.
        threads::made(id, unsafe { *handle });
    } else {
        threads::forget(id);
        // SAFETY: not handed on.
        drop(unsafe { Box::from_raw(beginning) });
    }
    result
}

/// Below the stacks of [`heap`] nothing is mapped, which guards as well as a page that may not be
/// touched. The standard library insists on one.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_attr_getguardsize(
    _: *const libc::pthread_attr_t,
    bytes: *mut size_t,
) -> c_int {
    // SAFETY: the caller gives a place for the answer.
    unsafe { *bytes = 4096 };
    0
}

/// The key whose destructor is the last thing that a thread does, after the destructors of its
/// thread-local values, which may wait and wake like everything else.
static LAST: AtomicU32 = AtomicU32::new(u32::MAX);

extern "C" fn first_turn(beginning: *mut c_void) -> *mut c_void {
    // SAFETY: made by `pthread_create` for this thread alone.
    let beginning = unsafe { Box::from_raw(beginning.cast::<Beginning>()) };
    // SAFETY: made for this thread.
    unsafe { threads::arrive(beginning.id, beginning.context) };
    if LAST.load(Ordering::Relaxed) == u32::MAX {
        let mut key = 0;
        // SAFETY: a place for the key, and a destructor of the right type.
        unsafe { libc::pthread_key_create(&mut key, Some(last_turn)) };
        LAST.store(key, Ordering::Relaxed);
    }
    // SAFETY: the key was made above; the value only has to differ from null.
    unsafe {
        libc::pthread_setspecific(LAST.load(Ordering::Relaxed), std::ptr::dangling::<u8>().cast())
    };
    let (main, argument) = (beginning.main, beginning.argument);
    drop(beginning);
    main(argument)
}

unsafe extern "C" fn last_turn(_: *mut c_void) {
    threads::leave();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_join(handle: pthread_t, result: *mut *mut c_void) -> c_int {
    if takes_turns() {
        threads::join(handle as *mut c_void);
    }
    // SAFETY: the C library's function of this name has this type; the caller's own arguments.
    unsafe {
        let join: Join = std::mem::transmute(real(c"pthread_join", &JOIN));
        join(handle, result)
    }
}

/// Asks the disk before a change of `fd`; an error number is the answer.
macro_rules! ask {
    ($asked:expr) => {
        if takes_turns()
            && let Err(error) = $asked
        {
            return fail(error) as _;
        }
    };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t {
    ask!(disk::before_write(fd, None, len));
    // SAFETY: the caller's own arguments.
    as_c(unsafe { call(libc::SYS_write, [fd as usize, buffer as usize, len, 0, 0, 0]) }) as ssize_t
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, vector: *const libc::iovec, n: c_int) -> ssize_t {
    if takes_turns() {
        // SAFETY: the caller gives `n` buffers.
        let parts = unsafe { std::slice::from_raw_parts(vector, n.max(0) as usize) };
        ask!(disk::before_write(fd, None, parts.iter().map(|part| part.iov_len).sum()));
    }
    let args = [fd as usize, vector as usize, n as usize, 0, 0, 0];
    // SAFETY: the caller's own arguments.
    as_c(unsafe { call(libc::SYS_writev, args) }) as ssize_t
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(
    fd: c_int,
    buffer: *const c_void,
    len: size_t,
    offset: off64_t,
) -> ssize_t {
    ask!(disk::before_write(fd, Some(offset as u64), len));
    let args = [fd as usize, buffer as usize, len, offset as usize, 0, 0];
    // SAFETY: the caller's own arguments.
    as_c(unsafe { call(libc::SYS_pwrite64, args) }) as ssize_t
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, len: off64_t) -> c_int {
    ask!(disk::before_cut(fd, len as u64));
    // SAFETY: the caller's own arguments.
    as_c(unsafe { call(libc::SYS_ftruncate, [fd as usize, len as usize, 0, 0, 0, 0]) }) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    ask!(disk::sync(fd));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    ask!(disk::sync(fd));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    let open = |flags: c_int| {
        let args = [libc::AT_FDCWD as usize, path as usize, flags as usize, mode as usize, 0, 0];
        // SAFETY: the caller's own arguments.
        as_c(unsafe { call(libc::SYS_openat, args) }) as c_int
    };
    if !takes_turns() {
        return open(flags);
    }
    if flags & libc::O_CREAT != 0 {
        // SAFETY: the caller gives a terminated name.
        let name = unsafe { std::ffi::CStr::from_ptr(path) };
        ask!(disk::before_create(|| Some(std::ffi::OsStr::from_bytes(name.to_bytes()).into())));
    }
    let fd = open(flags & !libc::O_TRUNC);
    if fd >= 0 && flags & libc::O_TRUNC != 0 {
        // SAFETY: as a caller would.
        unsafe { ftruncate64(fd, 0) };
    }
    fd
}
