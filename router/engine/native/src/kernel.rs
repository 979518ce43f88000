//! The system calls of the data path, and the only unsafe code of the engine. Each block says why it is sound.
//!
//! Every fd is the caller's: an engine is lent them and never closes one (router/engine/interface.py). A call on an fd
//! that is not open returns EBADF; no memory depends on it.

use std::io::IoSlice;
use std::mem::{self, MaybeUninit};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::RawFd;

pub use libc::{EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, ENOMEM};

/// An errno.
pub type Errno = i32;

const UDP_SEGMENT: i32 = 103; // linux/udp.h
const UDP_GRO: i32 = 104;
const SK_MEMINFO_DROPS: usize = 8; // linux/sock_diag.h
const SO_MEMINFO: i32 = 55;
const CONTROL_BYTES: usize = 64;

/// What came in one receive.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub size: usize,
    /// The length of each datagram of a train but the last; `size` for a single one.
    pub segment_bytes: usize,
    pub truncated: bool,
    /// None for an address of a family we do not speak.
    pub from: Option<SocketAddr>,
}

/// What the data path asks of the kernel; the fuzzer answers in its place.
pub trait Kernel {
    /// Read one frame from a TUN.
    fn read(&mut self, fd: RawFd, into: &mut [u8]) -> Result<usize, Errno>;
    /// Write one frame to a TUN.
    fn write(&mut self, fd: RawFd, frame: &[IoSlice]) -> Result<(), Errno>;
    /// Receive a train from the underlay.
    fn receive(&mut self, into: &mut [u8]) -> Result<Arrival, Errno>;
    /// Send a train, or one datagram where `segment_bytes` is 0.
    fn send(&mut self, to: &SocketAddr, datagrams: &[IoSlice], segment_bytes: u16) -> Result<(), Errno>;
    /// Wait for room in the socket; false when there is none in time.
    fn await_room(&mut self, milliseconds: i32) -> bool;
    /// A monotonic clock.
    fn now_ns(&mut self) -> u64;
    /// CLOCK_REALTIME.
    fn wall_ns(&mut self) -> u64;
}

/// The real one, for one UDP socket.
pub struct Linux {
    pub socket: RawFd,
}

fn errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn checked(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| errno())
}

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Kernel for Linux {
    fn read(&mut self, fd: RawFd, into: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: the kernel writes at most `len` bytes into a slice that is ours alone meanwhile.
        checked(unsafe { libc::read(fd, into.as_mut_ptr().cast(), into.len()) })
    }

    fn write(&mut self, fd: RawFd, frame: &[IoSlice]) -> Result<(), Errno> {
        let written = match frame {
            // SAFETY: the kernel reads `len` bytes of a slice that lives through the call.
            [whole] => unsafe { libc::write(fd, whole.as_ptr().cast(), whole.len()) },
            // SAFETY: IoSlice has the layout of iovec (std's promise on Unix); each points at a slice that lives on.
            _ => unsafe { libc::writev(fd, frame.as_ptr().cast(), frame.len() as i32) },
        };
        checked(written).map(|_| ())
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<Arrival, Errno> {
        let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
        let mut control = Control([0; CONTROL_BYTES]);
        let mut vector = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        // SAFETY: msghdr is plain data, for which zeros are valid.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = address.as_mut_ptr().cast();
        message.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as u32;
        message.msg_iov = &mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES;
        // SAFETY: every pointer in `message` is to a local or to `into`, with its true length; all outlive the call.
        let size = checked(unsafe { libc::recvmsg(self.socket, &mut message, libc::MSG_DONTWAIT) })?;
        // SAFETY: it was zeroed, and zeros are a valid sockaddr_storage, whatever the kernel wrote over them.
        let from = socket_address(unsafe { address.assume_init_ref() });
        let segment_bytes = train_step(&message).filter(|&step| step > 0).unwrap_or(size);
        Ok(Arrival { size, segment_bytes, truncated: message.msg_flags & libc::MSG_TRUNC != 0, from })
    }

    fn send(&mut self, to: &SocketAddr, datagrams: &[IoSlice], segment_bytes: u16) -> Result<(), Errno> {
        let (mut address, address_bytes) = raw_address(to);
        // SAFETY: msghdr is plain data, for which zeros are valid.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = address_bytes;
        message.msg_iov = datagrams.as_ptr().cast_mut().cast();
        message.msg_iovlen = datagrams.len();
        let mut control = Control([0; CONTROL_BYTES]);
        if segment_bytes > 0 {
            message.msg_control = control.0.as_mut_ptr().cast();
            // SAFETY: `control` is aligned as cmsghdr and longer than CMSG_SPACE(2), so header and data lie within it.
            unsafe {
                message.msg_controllen = libc::CMSG_SPACE(2) as usize;
                let head = libc::CMSG_FIRSTHDR(&message);
                (*head).cmsg_level = libc::SOL_UDP;
                (*head).cmsg_type = UDP_SEGMENT;
                (*head).cmsg_len = libc::CMSG_LEN(2) as usize;
                libc::CMSG_DATA(head).cast::<u16>().write_unaligned(segment_bytes);
            }
        }
        // SAFETY: the kernel only reads; every pointer in `message` is to a local or to slices that outlive the call.
        checked(unsafe { libc::sendmsg(self.socket, &message, libc::MSG_DONTWAIT) }).map(|_| ())
    }

    fn await_room(&mut self, milliseconds: i32) -> bool {
        let mut waiting = libc::pollfd { fd: self.socket, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one pollfd, which is a local.
        unsafe { libc::poll(&mut waiting, 1, milliseconds) > 0 }
    }

    fn now_ns(&mut self) -> u64 {
        now_ns()
    }

    fn wall_ns(&mut self) -> u64 {
        clock_ns(libc::CLOCK_REALTIME)
    }
}

/// Return the length of the datagrams of a train, if the kernel says that one came (UDP_GRO).
fn train_step(message: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has filled in `message`; the CMSG macros stay within msg_controllen bytes of msg_control.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(message);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_UDP && (*head).cmsg_type == UDP_GRO {
                return usize::try_from(libc::CMSG_DATA(head).cast::<i32>().read_unaligned()).ok();
            }
            head = libc::CMSG_NXTHDR(message, head);
        }
    }
    None
}

fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: sockaddr_storage is as large and as aligned as any address; the family says which it is.
            let raw = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddrV4::new(address, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, u16::from_be(raw.sin6_port), 0, 0).into())
        }
        _ => None,
    }
}

fn raw_address(to: &SocketAddr) -> (libc::sockaddr_storage, u32) {
    // SAFETY: sockaddr_storage is plain data, for which zeros are valid.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    match to {
        SocketAddr::V4(to) => {
            // SAFETY: sockaddr_storage is as large and as aligned as any address, and ours alone.
            let raw = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
            raw.sin_family = libc::AF_INET as u16;
            raw.sin_port = to.port().to_be();
            raw.sin_addr.s_addr = to.ip().to_bits().to_be();
            (storage, mem::size_of::<libc::sockaddr_in>() as u32)
        }
        SocketAddr::V6(to) => {
            // SAFETY: as above.
            let raw = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
            raw.sin6_family = libc::AF_INET6 as u16;
            raw.sin6_port = to.port().to_be();
            raw.sin6_addr.s6_addr = to.ip().octets();
            (storage, mem::size_of::<libc::sockaddr_in6>() as u32)
        }
    }
}

/// Let this thread's wake-ups wait until who runs has used up its turn (SCHED_BATCH, sched(7)), or not. On an idle
/// processor it is woken as quickly. It takes no privilege.
pub fn let_others_finish(wait: bool) {
    let policy = if wait { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads one sched_param, a local; it is about the calling thread alone.
    unsafe { libc::sched_setscheduler(0, policy, &parameters) };
}

/// CLOCK_MONOTONIC, in nanoseconds.
pub fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, a local.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Return how many datagrams a socket had no room for; 0 when the kernel does not say.
pub fn socket_drops(socket: RawFd) -> u32 {
    let mut memory = [0u32; 16];
    let mut size = mem::size_of_val(&memory) as u32;
    // SAFETY: the kernel writes at most `size` bytes into `memory`.
    let failed =
        unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, SO_MEMINFO, memory.as_mut_ptr().cast(), &mut size) };
    if failed == 0 && size as usize > 4 * SK_MEMINFO_DROPS { memory[SK_MEMINFO_DROPS] } else { 0 }
}

/// Readiness of many fds (epoll(7)), and a way to be woken from another thread.
pub struct Poller {
    epoll: RawFd,
    wake: RawFd,
}

/// What `Poller::wait` says for the wake-up itself.
pub const WOKEN: u64 = u64::MAX;

impl Poller {
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: no pointers; each returns an fd that is ours, or -1.
        let (epoll, wake) = unsafe {
            (libc::epoll_create1(libc::EPOLL_CLOEXEC), libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
        };
        let poller = Poller { epoll, wake };
        if epoll < 0 || wake < 0 {
            return Err(std::io::Error::last_os_error());
        }
        poller.watch(wake, WOKEN).map_err(std::io::Error::from_raw_os_error)?;
        Ok(poller)
    }

    /// Report an fd whenever it is readable, as `token`.
    pub fn watch(&self, fd: RawFd, token: u64) -> Result<(), Errno> {
        self.control(libc::EPOLL_CTL_ADD, fd, token)
    }

    /// Report it no more; an fd that is not watched is no error.
    pub fn unwatch(&self, fd: RawFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0);
    }

    fn control(&self, operation: i32, fd: RawFd, token: u64) -> Result<(), Errno> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: one event, a local that outlives the call.
        checked(unsafe { libc::epoll_ctl(self.epoll, operation, fd, &mut event) } as isize).map(|_| ())
    }

    /// Wait for readable fds and put their tokens into `ready`; -1 ms waits without end.
    pub fn wait(&self, ready: &mut Vec<u64>, milliseconds: i32) {
        const MOST: usize = 64;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MOST];
        // SAFETY: the kernel writes at most MOST events into a local array.
        let count = unsafe { libc::epoll_wait(self.epoll, events.as_mut_ptr(), MOST as i32, milliseconds) };
        ready.clear();
        ready.extend(events.iter().take(usize::try_from(count).unwrap_or(0)).map(|event| event.u64));
    }

    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the kernel reads 8 bytes of a local. A counter that is full has woken already.
        unsafe { libc::write(self.wake, one.as_ptr().cast(), one.len()) };
    }

    pub fn drain_wake(&self) {
        let mut count = [0u8; 8];
        // SAFETY: the kernel writes 8 bytes into a local.
        unsafe { libc::read(self.wake, count.as_mut_ptr().cast(), count.len()) };
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        for fd in [self.epoll, self.wake] {
            if fd >= 0 {
                // SAFETY: both fds were made by `new` and belong to nobody else.
                unsafe { libc::close(fd) };
            }
        }
    }
}
