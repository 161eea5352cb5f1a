//! A server to be configured, and the handle of one that runs.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::descriptors::room_for_connections;
use crate::event_loop::EventLoop;
use crate::listener;
use crate::service::Service;

/// A server that has a listening socket and does not accept connections yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    limits: Limits,
    stop_signal: Option<UnixStream>,
}

/// The limits that depend on where the server runs. All others are constants, which the crate's front
/// page lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most open connections, the reserve of sixteen for urgent requests apart. The limit on
    /// descriptors may lower it. Together they hold at most 20 KiB of memory each, the kernel's
    /// buffers included. Default: 1000.
    pub connections: usize,
    /// How long responses that are delayed or take work may go on waiting once the server has been
    /// told to stop; those that wait longer become a 503. Default: 5 seconds.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1000,
            grace: Duration::from_secs(5),
        }
    }
}

impl Server {
    /// Binds a listening socket to an address. Port 0 lets the system choose one.
    ///
    /// # Errors
    /// When the address is taken or is not this machine's, or when the port needs a privilege.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        listener::listen(address).map(Self::new)
    }

    /// Binds a listening socket to a port of every address, IPv6 and IPv4; to IPv4 alone where there is
    /// no IPv6.
    ///
    /// # Errors
    /// When the port is taken or needs a privilege.
    pub fn bind_every_address(port: u16) -> io::Result<Self> {
        listener::listen_on_every_address(port).map(Self::new)
    }

    /// Uses a listening socket that exists, such as one that systemd has opened.
    ///
    /// # Errors
    /// When the socket does not accept the options that the server needs.
    pub fn from_listener(listener: TcpListener) -> io::Result<Self> {
        listener::set_up(listener).map(Self::new)
    }

    fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            limits: Limits::default(),
            stop_signal: None,
        }
    }

    /// The same server with these limits.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The same server, which stops when this stream becomes readable or its other end is closed. A
    /// signal handler can write to the other end.
    #[must_use]
    pub fn stop_when_readable(self, stop_signal: UnixStream) -> Self {
        Self {
            stop_signal: Some(stop_signal),
            ..self
        }
    }

    /// The address that the server listens on.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The effective limit on connections: the lower of [`Limits::connections`] and what the limit on
    /// descriptors leaves room for.
    pub fn connection_limit(&self) -> usize {
        self.limits.connections.min(room_for_connections()).max(1)
    }

    /// The listening socket, for another server.
    pub fn into_listener(self) -> TcpListener {
        self.listener
    }

    /// Serves on this thread until the stop signal comes and the requests received by then are
    /// answered; without a stop signal, forever.
    ///
    /// # Errors
    /// When the kernel refuses to poll. An error of a connection ends that connection only.
    pub fn run<V: Service>(self, service: V) -> io::Result<()> {
        let limits = Limits {
            connections: self.connection_limit(),
            ..self.limits
        };
        // Without a stop signal, this end is held and nothing is written to it.
        let (never, _held) = UnixStream::pair()?;
        let stop_signal = self.stop_signal.unwrap_or(never);
        EventLoop::new(self.listener, stop_signal, service, &limits)?.run()
    }

    /// Serves on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be started or the kernel does not tell the address.
    pub fn spawn<V: Service + Send + 'static>(self, service: V) -> io::Result<Handle> {
        let address = self.local_addr()?;
        let (stop_signal, stop) = UnixStream::pair()?;
        let server = self.stop_when_readable(stop_signal);
        let thread = thread::Builder::new()
            .name("bounded-http".into())
            .spawn(move || server.run(service))?;
        Ok(Handle {
            address,
            stop,
            thread,
        })
    }
}

/// A server that runs on a thread of its own. When the handle is dropped, the server stops, and
/// nobody waits for it.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    stop: UnixStream,
    thread: JoinHandle<io::Result<()>>,
}

impl Handle {
    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has the server stop, and waits until every request that it has received is answered.
    ///
    /// # Errors
    /// What [`Server::run`] returned.
    ///
    /// # Panics
    /// If the server's thread did, which the service alone can cause.
    pub fn stop(mut self) -> io::Result<()> {
        // If the server has ended already, nobody reads this.
        let _ = self.stop.write_all(&[0]);
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
