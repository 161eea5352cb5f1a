//! The server's configuration, and the handle of a running server.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use crate::descriptors::connections_within_descriptor_limit;
use crate::event_loop::EventLoop;
use crate::limits::Limits;
use crate::listener;
use crate::service::Service;

/// A server that listens, but does not accept connections until it [runs](Self::run).
///
/// ```
/// use bounded_http::{Limits, Reply, Request, Server, Status};
///
/// # fn main() -> std::io::Result<()> {
/// let limits = Limits { connections: 100, ..Limits::default() };
/// let server = Server::bind("127.0.0.1:0")?.limits(limits);
/// let handle = server.spawn(|_: &Request<'_>| Reply::text(Status::Ok, "Hello.\n"))?;
/// println!("Listening on http://{}", handle.address());
/// handle.stop()
/// # }
/// ```
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
    stop_signal: Option<UnixStream>,
}

impl Server {
    /// Binds a listening socket to an address. With port 0, the system chooses the port.
    ///
    /// # Errors
    /// If the address is in use or does not belong to this machine, or if the port needs a privilege.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        listener::listen(address).and_then(Self::new)
    }

    /// Binds a listening socket to a port of every address, IPv6 and IPv4, or only IPv4 if the system
    /// has no IPv6.
    ///
    /// # Errors
    /// If the port is in use or needs a privilege.
    pub fn bind_every_address(port: u16) -> io::Result<Self> {
        listener::listen_on_every_address(port).and_then(Self::new)
    }

    /// Uses an existing listening socket, such as one that systemd has opened.
    ///
    /// # Errors
    /// If the socket does not accept the options that the server needs.
    pub fn from_listener(listener: TcpListener) -> io::Result<Self> {
        listener::set_up(listener).and_then(Self::new)
    }

    fn new(listener: TcpListener) -> io::Result<Self> {
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            limits: Limits::default(),
            stop_signal: None,
        })
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Makes the running server stop when this stream becomes readable or its other end is closed. A
    /// signal handler can write to the other end.
    #[must_use]
    pub fn stop_when_readable(self, stop_signal: UnixStream) -> Self {
        Self {
            stop_signal: Some(stop_signal),
            ..self
        }
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the effective limit on connections: the lower of [`Limits::connections`] and what the
    /// limit on descriptors allows.
    pub fn connection_limit(&self) -> usize {
        self.limits
            .connections
            .min(connections_within_descriptor_limit())
            .max(1)
    }

    /// Returns the listening socket, for another server to use.
    pub fn into_listener(self) -> TcpListener {
        self.listener
    }

    /// Serves on this thread. Returns after the [stop signal](Self::stop_when_readable), when every
    /// request received by then has been answered. Without a stop signal, it does not return.
    ///
    /// # Errors
    /// If polling fails. An error of a connection only ends that connection.
    pub fn run<V: Service>(self, service: V) -> io::Result<()> {
        self.run_until(None, service)
    }

    /// Serves until the stop signal of this server or that of its handle.
    fn run_until<V: Service>(
        self,
        stop_of_handle: Option<UnixStream>,
        service: V,
    ) -> io::Result<()> {
        let limits = Limits {
            connections: self.connection_limit(),
            ..self.limits
        };
        let stop_signals = [self.stop_signal, stop_of_handle];
        EventLoop::new(self.listener, stop_signals, service, &limits)?.run()
    }

    /// Serves on a new thread, until the handle [stops](Handle::stop) the server or is dropped, or until a
    /// [stop signal](Self::stop_when_readable).
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn spawn<V: Service + Send + 'static>(self, service: V) -> io::Result<Handle> {
        let address = self.address;
        let (stop_signal, stop) = UnixStream::pair()?;
        let thread = thread::Builder::new()
            .name("bounded-http".into())
            .spawn(move || self.run_until(Some(stop_signal), service))?;
        Ok(Handle {
            address,
            stop,
            thread,
        })
    }
}

/// A server that runs on its own thread. Dropping the handle stops the server without waiting for it.
#[must_use = "the server stops when its handle is dropped"]
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    stop: UnixStream,
    thread: JoinHandle<io::Result<()>>,
}

impl Handle {
    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the server, and waits until it has answered every request that it received.
    ///
    /// # Errors
    /// The error with which [`Server::run`] ended.
    ///
    /// # Panics
    /// If the [service](Service) ended the server with a panic.
    pub fn stop(mut self) -> io::Result<()> {
        // Ignore write errors: the server may have ended already.
        let _ = self.stop.write_all(&[0]);
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;
    use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
    use std::time::Duration;

    use super::*;
    use crate::http::Status;
    use crate::reply::Reply;
    use crate::request::Request;

    #[test]
    fn the_limit_on_connections_is_the_given_one_if_the_descriptors_allow_it() {
        let server = Server::bind("127.0.0.1:0").unwrap();
        for (connections, expected) in [(0, 1), (7, 7)] {
            let limits = Limits {
                connections,
                ..Limits::default()
            };
            let server = Server::bind("127.0.0.1:0").unwrap().limits(limits);
            assert_eq!(server.connection_limit(), expected);
        }
        let unlimited = Limits {
            connections: usize::MAX,
            ..Limits::default()
        };
        let limit = server.limits(unlimited).connection_limit();
        assert!(limit < usize::MAX, "what the descriptors allow");
    }

    #[test]
    fn a_server_serves_at_least_one_connection() {
        let limits = Limits {
            connections: 0,
            ..Limits::default()
        };
        let server = Server::bind("127.0.0.1:0").unwrap().limits(limits);
        let handle = server.spawn(|_: &Request<'_>| Reply::text(Status::Ok, ""));
        let handle = handle.unwrap();
        let response = ask(handle.address(), || {});
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        handle.stop().unwrap();
    }

    /// Sends a request, calls a function, and returns the response.
    fn ask(address: SocketAddr, before_reading: impl FnOnce()) -> String {
        let mut client = TcpStream::connect(address).unwrap();
        let timeout = Some(Duration::from_secs(60));
        client.set_read_timeout(timeout).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        client.write_all(request).unwrap();
        before_reading();
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        response
    }

    #[test]
    fn a_server_with_a_handle_stops_at_its_stop_signal_too() {
        let (running, has_ended) = mpsc::channel::<()>();
        let (stop_signal, mut stop) = UnixStream::pair().unwrap();
        let server = Server::bind("127.0.0.1:0").unwrap();
        let handle = server
            .stop_when_readable(stop_signal)
            .spawn(move |_: &Request<'_>| {
                let _running = &running;
                Reply::text(Status::Ok, "")
            });
        stop.write_all(&[0]).unwrap();
        let ended = has_ended.recv_timeout(Duration::from_secs(60));
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
        handle.unwrap().stop().unwrap();
    }

    #[test]
    fn stopping_waits_until_every_received_request_is_answered() {
        let (received, has_received) = mpsc::channel();
        let server = Server::bind("127.0.0.1:0").unwrap();
        let handle = server.spawn(move |_: &Request<'_>| {
            received.send(()).unwrap();
            Reply::text(Status::Ok, "").after(Duration::from_millis(300))
        });
        let handle = handle.unwrap();
        let response = ask(handle.address(), || {
            has_received.recv().unwrap();
            handle.stop().unwrap();
            // The service, and with it the sender, has been dropped.
            assert_eq!(has_received.try_recv(), Err(TryRecvError::Disconnected));
        });
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    }
}
