//! The system calls, for real: over socket pairs, as a TUN, and over loopback UDP, with trains. Run it with AddressSanitizer
//! too (`make fuzz` does): this is the only unsafe code of the engine.

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use podwire_engine::kernel::*;

const UDP_GRO: i32 = 104; // linux/udp.h

/// Two ends that keep the bounds of messages, as a TUN does.
struct Pair {
    near: RawFd,
    far: RawFd,
}

impl Pair {
    fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: the kernel writes two fds into a local.
        let made = unsafe {
            libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK, 0, ends.as_mut_ptr())
        };
        assert_eq!(made, 0);
        Pair { near: ends[0], far: ends[1] }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for fd in [self.near, self.far] {
            // SAFETY: both are ours.
            unsafe { libc::close(fd) };
        }
    }
}

fn tun() -> Linux {
    Linux { socket: -1 }
}

/// An underlay socket and what drives it.
fn underlay(address: &str) -> (UdpSocket, Linux) {
    let socket = UdpSocket::bind(SocketAddr::new(address.parse().expect("an address"), 0)).expect("loopback");
    socket.set_nonblocking(true).expect("non-blocking");
    let kernel = Linux { socket: socket.as_raw_fd() };
    (socket, kernel)
}

fn enable_gro(socket: &UdpSocket) {
    let on = 1i32;
    // SAFETY: the kernel reads four bytes of a local.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, UDP_GRO, (&raw const on).cast(), 4) };
    assert_eq!(set, 0, "UDP_GRO");
}

/// Receive once it is there.
fn receive(kernel: &mut Linux, into: &mut [u8]) -> Result<Arrival, Errno> {
    for _ in 0..5000 {
        match kernel.receive(into) {
            Err(EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
            arrival => return arrival,
        }
    }
    panic!("nothing came for 5 s");
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 % 251) as u8).collect()
}

#[test]
fn frames_cross_whole_whatever_their_pieces() {
    let pair = Pair::new();
    let mut kernel = tun();
    let mut space = vec![0; 70_000];
    for size in [1, 10, 999, 65_545] {
        let frame = pattern(size);
        kernel.write(pair.near, &[IoSlice::new(&frame)]).expect("room");
        assert_eq!(kernel.read(pair.far, &mut space), Ok(size));
        assert_eq!(&space[..size], frame);
        for pieces in [2, 3, 16, 259] {
            let cut: Vec<IoSlice> = frame.chunks(size.div_ceil(pieces)).map(IoSlice::new).collect();
            kernel.write(pair.near, &cut).expect("room");
            assert_eq!(kernel.read(pair.far, &mut space), Ok(size));
            assert_eq!(&space[..size], frame, "{size} bytes in {pieces} pieces");
        }
    }
    assert_eq!(kernel.read(pair.far, &mut space), Err(EAGAIN));
}

#[test]
fn a_read_ends_where_its_buffer_does() {
    let pair = Pair::new();
    let mut kernel = tun();
    kernel.write(pair.near, &[IoSlice::new(&pattern(500))]).expect("room");
    let mut space = vec![0xEE; 120];
    assert_eq!(kernel.read(pair.far, &mut space[10..110]), Ok(100));
    assert_eq!((&space[..10], &space[110..]), (&[0xEE; 10][..], &[0xEE; 10][..]));
    assert_eq!(space[10..110], pattern(100));
    assert_eq!(kernel.read(pair.far, &mut space), Err(EAGAIN), "the rest of a message is gone");
}

#[test]
fn errors_are_errnos() {
    let mut kernel = tun();
    let mut space = [0; 16];
    assert_eq!(kernel.read(-1, &mut space), Err(libc::EBADF));
    assert_eq!(kernel.write(-1, &[IoSlice::new(&space)]), Err(libc::EBADF));
    assert_eq!(kernel.write(-1, &[IoSlice::new(&space), IoSlice::new(&[1])]), Err(libc::EBADF));
    assert_eq!(kernel.receive(&mut space).unwrap_err(), libc::EBADF);
    let to = "127.0.0.1:9".parse().expect("an endpoint");
    assert_eq!(kernel.send(&to, &[IoSlice::new(&space)], 0), Err(libc::EBADF));
    assert_eq!(socket_drops(-1), 0);
    let (_socket, mut kernel) = underlay("127.0.0.1");
    assert_eq!(kernel.receive(&mut space).unwrap_err(), EAGAIN);
    assert_eq!(kernel.send(&to, &[IoSlice::new(&pattern(65_508))], 0), Err(EMSGSIZE));
    let wrong: SocketAddr = "[::1]:9".parse().expect("an endpoint");
    assert!(kernel.send(&wrong, &[IoSlice::new(&space)], 0).is_err(), "another family");
}

#[test]
fn a_full_pair_says_so() {
    let pair = Pair::new();
    let mut kernel = tun();
    let frame = pattern(60_000);
    let mut written = 0;
    while kernel.write(pair.near, &[IoSlice::new(&frame)]).is_ok() {
        written += 1;
    }
    assert!(written > 0);
    assert_eq!(kernel.write(pair.near, &[IoSlice::new(&frame), IoSlice::new(&frame)]), Err(EAGAIN));
}

fn trains(address: &str) {
    let (target, mut inward) = underlay(address);
    let (source, mut outward) = underlay(address);
    enable_gro(&target);
    let (to, from) = (target.local_addr().expect("bound"), source.local_addr().expect("bound"));
    let mut space = vec![0; 262_144];
    for (size, step) in [
        (1, 0),
        (1000, 0),
        (65_000, 0),
        (3000, 1000),
        (3001, 1000),
        (64_000, 1000),
        (2, 1),
        (1400, 1400),
        (65_000, 1300),
    ] {
        let bytes = pattern(size);
        for pieces in [1, 2, 7, 100] {
            let cut: Vec<IoSlice> = bytes.chunks(size.div_ceil(pieces)).map(IoSlice::new).collect();
            outward.send(&to, &cut, step as u16).expect("loopback takes it");
            let arrival = receive(&mut inward, &mut space).expect("no error");
            assert_eq!(arrival.size, size);
            assert_eq!(
                arrival.segment_bytes,
                if step > 0 && step < size { step } else { size },
                "{size} bytes by {step}"
            );
            assert_eq!(arrival.from, Some(from));
            assert!(!arrival.truncated);
            assert_eq!(&space[..size], bytes);
        }
    }
    outward.send(&to, &[], 0).expect("an empty datagram");
    let arrival = receive(&mut inward, &mut space).expect("no error");
    assert_eq!((arrival.size, arrival.truncated), (0, false));
    outward.send(&to, &[IoSlice::new(&pattern(64_000))], 1000).expect("loopback takes it");
    let arrival = receive(&mut inward, &mut space[..5500]).expect("no error");
    assert_eq!((arrival.size, arrival.segment_bytes, arrival.truncated), (5500, 1000, true));
    assert!(outward.await_room(0), "nothing is under way");
    assert_eq!(socket_drops(target.as_raw_fd()), 0);
}

#[test]
fn trains_cross_ipv4() {
    trains("127.0.0.1");
}

#[test]
fn trains_cross_ipv6() {
    trains("::1");
}

#[test]
fn without_gro_a_train_comes_in_pieces() {
    let (target, mut inward) = underlay("127.0.0.1");
    let (_source, mut outward) = underlay("127.0.0.1");
    let bytes = pattern(3500);
    outward.send(&target.local_addr().expect("bound"), &[IoSlice::new(&bytes)], 1000).expect("loopback takes it");
    let mut space = vec![0; 2000];
    for piece in bytes.chunks(1000) {
        let arrival = receive(&mut inward, &mut space).expect("no error");
        assert_eq!((arrival.size, arrival.segment_bytes), (piece.len(), piece.len()));
        assert_eq!(&space[..arrival.size], piece);
    }
}

#[test]
fn a_socket_without_room_counts_what_it_drops() {
    let (target, _) = underlay("127.0.0.1");
    let (_source, mut outward) = underlay("127.0.0.1");
    let (to, bytes) = (target.local_addr().expect("bound"), pattern(60_000));
    for _ in 0..2000 {
        let _ = outward.send(&to, &[IoSlice::new(&bytes)], 0);
        if socket_drops(target.as_raw_fd()) > 0 {
            return;
        }
    }
    panic!("120 MB went into one socket");
}

#[test]
fn the_poller_says_who_is_ready_until_it_is_drained() {
    let (pair, other) = (Pair::new(), Pair::new());
    let poller = Poller::new().expect("epoll");
    let mut kernel = tun();
    let mut ready = vec![99];
    poller.watch(pair.far, 7).expect("a socket");
    poller.watch(other.far, 8).expect("a socket");
    assert_eq!(poller.watch(pair.far, 7), Err(libc::EEXIST));
    assert_eq!(poller.watch(-1, 7), Err(libc::EBADF));
    poller.wait(&mut ready, 0);
    assert!(ready.is_empty());
    kernel.write(other.near, &[IoSlice::new(b"!")]).expect("room");
    for _ in 0..2 {
        poller.wait(&mut ready, -1);
        assert_eq!(ready, [8], "level-triggered");
    }
    kernel.write(pair.near, &[IoSlice::new(b"!")]).expect("room");
    poller.wait(&mut ready, -1);
    ready.sort_unstable();
    assert_eq!(ready, [7, 8]);
    poller.unwatch(other.far);
    poller.unwatch(other.far);
    poller.unwatch(-1);
    poller.wait(&mut ready, -1);
    assert_eq!(ready, [7]);
    kernel.read(pair.far, &mut [0; 8]).expect("it waits");
    poller.wait(&mut ready, 0);
    assert!(ready.is_empty());
    let many: Vec<Pair> = (0..100).map(|_| Pair::new()).collect();
    for (token, each) in many.iter().enumerate() {
        poller.watch(each.far, token as u64).expect("a socket");
        kernel.write(each.near, &[IoSlice::new(b"!")]).expect("room");
    }
    let mut seen = std::collections::HashSet::new();
    while seen.len() < many.len() {
        poller.wait(&mut ready, -1);
        for &token in &ready {
            kernel.read(many[token as usize].far, &mut [0; 8]).expect("it waits");
            assert!(seen.insert(token), "told of twice");
        }
    }
}

#[test]
fn the_poller_is_woken_from_elsewhere() {
    let poller = Poller::new().expect("epoll");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            (0..3).for_each(|_| poller.wake());
        });
        let mut ready = Vec::new();
        poller.wait(&mut ready, -1);
        assert_eq!(ready, [WOKEN]);
    });
    let mut ready = Vec::new();
    poller.drain_wake();
    poller.wait(&mut ready, 0);
    assert!(ready.is_empty());
    poller.drain_wake(); // with nothing to drain
}

#[test]
fn a_poller_that_is_gone_leaves_no_fd() {
    let count = || std::fs::read_dir("/proc/self/fd").expect("/proc").count();
    let pollers: Vec<Poller> = (0..200).map(|_| Poller::new().expect("epoll")).collect();
    let with = count();
    drop(pollers);
    assert!(count() + 300 < with, "other tests run beside this one and hold some");
}

#[test]
fn the_clock_goes_on() {
    let mut kernel = tun();
    let first = kernel.now_ns();
    std::thread::sleep(Duration::from_millis(2));
    assert!(kernel.now_ns() - first >= 2_000_000);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is after 1970");
    assert!(kernel.wall_ns().abs_diff(since.as_nanos() as u64) < 60_000_000_000, "the time of day");
}
