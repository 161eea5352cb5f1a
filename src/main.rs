//! Parses the flags, listens, and serves. The exit code is 0 after an orderly shutdown, 1 if it cannot
//! listen, serve or print, or if `healthcheck` fails, and 2 if a flag or an environment variable is invalid.

#![warn(clippy::unwrap_used)]

use std::env;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use bounded_http::{Limits, Server, raise_descriptor_limit};
use tiny_probe::app::App;
use tiny_probe::config::{self, Command, Config, Listen};
use tiny_probe::log::diagnostics;
use tiny_probe::shutdown::{GRACE_PERIOD, LAST_LINES_TIMEOUT};
use tiny_probe::{duration, healthcheck, shutdown};

const NAME_AND_VERSION: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// The commit that the program was built from. For releases and images, `make` sets the variable.
const COMMIT: &str = match option_env!("TINY_PROBE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

fn main() -> ExitCode {
    let command = match Command::parse(env::args_os().skip(1), |name| env::var_os(name)) {
        Ok(command) => command,
        Err(error) => return fail(2, &error.to_string()),
    };
    let result = match command {
        Command::Serve(config) => serve(&config),
        Command::Healthcheck(listen) => healthcheck::check(listen),
        Command::Help => print(&config::help()),
        Command::Version => print(&version()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(1, &message),
    }
}

fn serve(config: &Config) -> Result<(), String> {
    let cannot_handle_signals = |error| format!("cannot handle signals: {error}");
    let stop = shutdown::install_signal_handlers().map_err(cannot_handle_signals)?;
    let delay = config.start_delay;
    if !delay.is_zero() {
        diagnostics::print(format_args!(
            "listening in {} (--start-delay)",
            duration::write(delay)
        ));
        if stop.wait(delay).map_err(cannot_handle_signals)? {
            return Ok(());
        }
    }
    let listen = config.listen;
    let cannot_listen =
        |error| format!("cannot listen on {listen}: {error}; choose another address with --listen");
    let descriptors = raise_descriptor_limit();
    let server = match listen {
        Listen::EveryAddress(port) => Server::bind_every_address(port),
        Listen::Address(address) => Server::bind(address),
    };
    let server = server.map_err(cannot_listen)?.limits(Limits {
        connections: config.max_connections,
        grace: GRACE_PERIOD,
    });
    let address = server.address();
    let app = App::new(config).stopping_when(Arc::clone(&stop.is_stopping));
    let stop_signal = stop
        .delayed(config.shutdown_delay)
        .map_err(cannot_handle_signals)?;
    let access_log = app.access_log().clone();
    print_start(config, address);
    let result = match config.server {
        config::Server::EventLoop => {
            let limit = server.connection_limit();
            if limit < config.max_connections {
                diagnostics::report(format_args!(
                    "the descriptor limit, {descriptors}, allows only {limit} connections; raise it \
                     (ulimit -n) or lower --max-connections"
                ));
            }
            app.metrics().set_connections_max(limit);
            diagnostics::report_panics();
            server.stop_when_readable(stop_signal).run(app)
        }
        #[cfg(feature = "tiny-http")]
        config::Server::TinyHttp => {
            tiny_probe::tiny_http::run(server.into_listener(), stop_signal, app)
        }
    };
    shutdown::write_last_lines(&access_log);
    result.map_err(|error| format!("cannot continue serving: {error}"))
}

fn print_start(config: &Config, address: SocketAddr) {
    diagnostics::print_line(format_args!(
        "{NAME_AND_VERSION} ({}) on {}",
        config.server,
        url(config.listen, address)
    ));
}

/// Returns the URL for the start line. A browser on this machine can open it.
fn url(listen: Listen, address: SocketAddr) -> String {
    let port = address.port();
    match listen {
        Listen::Address(_) => format!("http://{address}"),
        Listen::EveryAddress(_) if address.is_ipv6() => {
            format!("http://localhost:{port} (every address)")
        }
        // The system has no IPv6.
        Listen::EveryAddress(_) => format!("http://localhost:{port} (every IPv4 address)"),
    }
}

/// Returns the output of `--version`, such as `tiny-probe 0.3.0 (commit 9f1c0d3a72b4, x86_64-linux-musl)`.
fn version() -> String {
    let (architecture, system) = (env::consts::ARCH, env::consts::OS);
    let libc = if cfg!(target_env = "musl") {
        "-musl"
    } else {
        ""
    };
    format!("{NAME_AND_VERSION} (commit {COMMIT}, {architecture}-{system}{libc})\n")
}

fn print(text: &str) -> Result<(), String> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| format!("cannot print: {error}"))
}

fn fail(code: u8, message: &str) -> ExitCode {
    diagnostics::print(message);
    diagnostics::flush_until(Instant::now() + LAST_LINES_TIMEOUT);
    ExitCode::from(code)
}
