//! Flags, then a listener, then a server, then an exit code: 0 after an orderly end, 1 when it
//! cannot listen or serve, 2 when a flag is wrong.

#![warn(clippy::unwrap_used)]

use std::env;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Instant;

use tiny_probe::access_log::AccessLog;
use tiny_probe::app::App;
use tiny_probe::config::{self, Command, Config, Listen, Server};
use tiny_probe::shutdown::LAST_LINES_TIMEOUT;
use tiny_probe::{diagnostics, healthcheck, server, shutdown};

const NAME_AND_VERSION: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

fn main() -> ExitCode {
    let command = match Command::parse(env::args_os().skip(1), |name| env::var_os(name)) {
        Ok(command) => command,
        Err(error) => return fail(2, &error.to_string()),
    };
    let result = match command {
        Command::Serve(config) => serve(&config),
        Command::Healthcheck(listen) => healthcheck::check(listen),
        Command::Help => print(&config::help()),
        Command::Version => print(&format!("{NAME_AND_VERSION}\n")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(1, &message),
    }
}

fn serve(config: &Config) -> Result<(), String> {
    let stop_signal =
        shutdown::on_signal().map_err(|error| format!("cannot handle signals: {error}"))?;
    let listen = config.listen;
    let listener = match listen {
        Listen::EveryAddress(port) => server::listen_on_every_address(port),
        Listen::Address(address) => server::listen(address),
    };
    let listener = listener.map_err(|error| {
        format!("cannot listen on {listen}: {error}; choose another address with --listen")
    })?;
    let address = listener
        .local_addr()
        .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let server = config.server;
    diagnostics::print(format_args!(
        "{NAME_AND_VERSION} ({server}) on {}",
        url(listen, address)
    ));
    let app = App::new(config);
    let access_log = AccessLog::new(config.access_log);
    let result = match server {
        Server::EventLoop => server::event_loop::run(
            listener,
            stop_signal,
            app,
            &access_log,
            config.max_connections,
        ),
        #[cfg(feature = "tiny-http")]
        Server::TinyHttp => server::tiny_http::run(listener, stop_signal, app, &access_log),
    };
    shutdown::write_last_lines(&access_log);
    result.map_err(|error| format!("cannot go on serving: {error}"))
}

/// The URL for the start line, one that a browser on this machine can open.
fn url(listen: Listen, address: SocketAddr) -> String {
    let port = address.port();
    match listen {
        Listen::Address(_) => format!("http://{address}"),
        Listen::EveryAddress(_) if address.is_ipv6() => {
            format!("http://localhost:{port} (every address)")
        }
        // A user who misses IPv6 sees here that the system has none.
        Listen::EveryAddress(_) => format!("http://localhost:{port} (every IPv4 address)"),
    }
}

fn print(text: &str) -> Result<(), String> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| format!("cannot print: {error}"))
}

fn fail(code: u8, message: &str) -> ExitCode {
    diagnostics::print(format_args!("tiny-probe: {message}"));
    diagnostics::flush_until(Instant::now() + LAST_LINES_TIMEOUT);
    ExitCode::from(code)
}
