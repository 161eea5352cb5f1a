//! The configuration, from flags and environment variables.
//!
//! Every setting is a row of [`FLAGS`]. A flag overrides its environment variable, which overrides the
//! default. `--help`, the error messages and /faults use the same rows.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use bounded_http::Status;
use lexopt::{Arg, Parser};

use crate::duration;
use crate::fail_with::FailWith;

/// Longer latencies are rejected, because they are probably a mistake.
const MAX_LATENCY: Duration = Duration::from_secs(3600);
/// More work is rejected, because a scrape may have to wait for as long.
const MAX_WORK: Duration = Duration::from_secs(1);

/// The accepted values of `exit-after`.
pub const EXIT_AFTER_RANGE: RangeInclusive<Duration> =
    Duration::ZERO..=Duration::from_secs(24 * 3600);
/// The value of `exit-after` for no exit.
pub const NEVER: &str = "never";
/// The accepted values of `exit-after`, to complete "expected …".
pub const ACCEPTED_EXIT_AFTER: &str =
    "never, or a duration of at most 24h with its unit, such as 20s";
/// The accepted exit codes, to complete "expected …".
pub const ACCEPTED_EXIT_CODE: &str = "a whole number from 0 to 255";

/// The settings of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// The request loop.
    pub server: Server,
    /// What /probe does.
    pub probe: ProbeSettings,
    /// What clients may change while the service runs.
    pub fault_injection: FaultInjection,
    /// How long the service waits before it listens.
    pub start_delay: Duration,
    /// How long the service keeps serving after it has been told to stop.
    pub shutdown_delay: Duration,
    /// The time after which the process exits by itself, as if it had crashed.
    pub exit_after: Option<Duration>,
    /// The exit code for `exit_after`.
    pub exit_code: u8,
    /// The seed for failures and latencies. `None` means a random one.
    pub random_seed: Option<u64>,
    /// The `version` label of `app_version_info`.
    pub app_version: String,
    /// The `config` label of `app_version_info`.
    pub app_config: String,
    /// The maximum number of open connections.
    pub max_connections: usize,
    /// The host name under which browsers may change settings, besides IP addresses and localhost.
    pub allowed_host: Option<String>,
    /// The format of the access log.
    pub access_log: AccessLogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Listen::EveryAddress(8080),
            server: Server::EventLoop,
            probe: ProbeSettings::default(),
            fault_injection: FaultInjection::Off,
            start_delay: Duration::ZERO,
            shutdown_delay: Duration::ZERO,
            exit_after: None,
            exit_code: 1,
            random_seed: None,
            app_version: "1".into(),
            app_config: "develop".into(),
            max_connections: 10_000,
            allowed_host: None,
            access_log: AccessLogFormat::Off,
        }
    }
}

/// How often a route fails, how, and how long it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeSettings {
    /// The fraction of requests that fail, 0 to 1.
    pub fail_rate: f64,
    /// How they fail.
    pub fail_with: FailWith,
    /// The mean latency of a failure.
    pub fail_latency: Duration,
    /// The fraction of the remaining requests that are slow, 0 to 1.
    pub slow_rate: f64,
    /// The mean latency of an ordinary request.
    pub latency: Duration,
    /// The mean latency of a slow request.
    pub slow_latency: Duration,
    /// The CPU time that a successful request takes.
    pub work: Duration,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            fail_rate: 0.0,
            fail_with: FailWith::Status(Status::InternalServerError),
            fail_latency: Duration::ZERO,
            slow_rate: 0.0,
            latency: Duration::ZERO,
            slow_latency: Duration::from_secs(9),
            work: Duration::ZERO,
        }
    }
}

/// What clients may change while the service runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultInjection {
    /// Nothing.
    Off,
    /// What /probe does.
    On,
    /// Every target.
    All,
}

/// The format of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// No access log.
    Off,
    /// Lines of seven fields, separated by spaces.
    Text,
    /// Lines of JSON objects with the same fields, and the trace of the request.
    Json,
}

/// Where to listen. With port 0, the system chooses the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On this port of every address, IPv6 and IPv4. The syntax is `:8080`.
    EveryAddress(u16),
    /// On this address and port.
    Address(SocketAddr),
}

impl FromStr for Listen {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let listen = match text.strip_prefix(':') {
            // The standard library would accept a sign.
            Some(port) if port.starts_with('+') => None,
            Some(port) => parse(port).map(Self::EveryAddress),
            None => parse(text).map(Self::Address),
        };
        listen.ok_or(())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EveryAddress(port) => write!(f, ":{port}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Which request loop serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The event loop of `bounded_http`.
    EventLoop,
    /// The plain loop, on `tiny_http`.
    #[cfg(feature = "tiny-http")]
    TinyHttp,
}

impl Server {
    /// Returns whether it can carry out every fault, including broken-off responses and those of the process.
    pub fn supports_all_faults(self) -> bool {
        self == Self::EventLoop
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EventLoop => "event-loop",
            #[cfg(feature = "tiny-http")]
            Self::TinyHttp => "tiny-http",
        })
    }
}

/// What the command line asks for.
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Serve.
    Serve(Config),
    /// Request /healthz from the service that listens there.
    Healthcheck(Listen),
    /// Print [`help`].
    Help,
    /// Print the version.
    Version,
}

/// What is wrong with the command line or the environment: one line that names the flag, the value and
/// what is accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// A setting.
pub struct Flag {
    /// The flag without its dashes.
    pub name: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// The placeholder of the value in the help text. It is empty for a switch.
    pub value: &'static str,
    /// The default, in the syntax of the flag.
    pub default: &'static str,
    /// What the setting does, for the help text.
    pub meaning: &'static str,
    /// The accepted values, to complete "expected …".
    pub accepted: &'static str,
    /// What the flag sets.
    pub sets: Sets,
}

/// What a flag sets, with a function that parses the value. It returns `None` if the value is not
/// accepted.
pub enum Sets {
    /// A setting of the service, which does not change while the service runs.
    Service(fn(&mut Config, &str) -> Option<()>),
    /// A setting of /probe, which /faults shows and changes.
    Probe(ProbeSetting),
}

/// How a setting of /probe is parsed and written.
#[derive(Clone, Copy)]
pub struct ProbeSetting {
    /// Changes the setting to this value, if it is accepted.
    pub set: fn(&mut ProbeSettings, &str) -> Option<()>,
    /// Writes the value in the syntax that `set` accepts.
    pub write: fn(&ProbeSettings) -> String,
}

/// All settings, in the order of the help text.
pub static FLAGS: [Flag; 20] = [
    Flag {
        name: "listen",
        variable: "LISTEN",
        value: "[ADDRESS]:PORT",
        default: ":8080",
        meaning: "where to listen; no address means all, port 0 means a free one",
        accepted: "a port, such as :8080, or an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080",
        sets: Sets::Service(|config, value| parse(value).map(|value| config.listen = value)),
    },
    Flag {
        name: "server",
        variable: "SERVER",
        value: "NAME",
        default: "event-loop",
        meaning: if cfg!(feature = "tiny-http") {
            "the request loop: event-loop or tiny-http"
        } else {
            "the request loop: event-loop"
        },
        accepted: if cfg!(feature = "tiny-http") {
            "event-loop or tiny-http"
        } else {
            "event-loop, or a build with the Cargo feature tiny-http"
        },
        sets: Sets::Service(|config, value| {
            config.server = match value {
                "event-loop" => Server::EventLoop,
                #[cfg(feature = "tiny-http")]
                "tiny-http" => Server::TinyHttp,
                _ => return None,
            };
            Some(())
        }),
    },
    Flag {
        name: "fail-rate",
        variable: "FAIL_RATE",
        value: "FRACTION",
        default: "0",
        meaning: "fraction of /probe requests that fail, 0 to 1",
        accepted: ACCEPTED_FRACTION,
        sets: Sets::Probe(ProbeSetting {
            set: |settings, value| fraction(value).map(|value| settings.fail_rate = value),
            write: |settings| settings.fail_rate.to_string(),
        }),
    },
    Flag {
        name: "fail-with",
        variable: "FAIL_WITH",
        value: "HOW",
        default: "500",
        meaning: "how they fail: a status, reset, close, cut, stall or hang",
        accepted: FailWith::ACCEPTED,
        sets: Sets::Probe(ProbeSetting {
            set: |settings, value| FailWith::parse(value).map(|value| settings.fail_with = value),
            write: |settings| settings.fail_with.name().to_owned(),
        }),
    },
    Flag {
        name: "fail-latency",
        variable: "FAIL_LATENCY",
        value: "DURATION",
        default: "0s",
        meaning: "mean latency of a failure; gamma distributed, shape 3",
        accepted: ACCEPTED_LATENCY,
        sets: Sets::Probe(ProbeSetting {
            set: |settings, value| latency(value).map(|value| settings.fail_latency = value),
            write: |settings| duration::write(settings.fail_latency),
        }),
    },
    Flag {
        name: "slow-rate",
        variable: "SLOW_RATE",
        value: "FRACTION",
        default: "0",
        meaning: "fraction of the remaining requests that are slow, 0 to 1",
        accepted: ACCEPTED_FRACTION,
        sets: Sets::Probe(ProbeSetting {
            set: |settings, value| fraction(value).map(|value| settings.slow_rate = value),
            write: |settings| settings.slow_rate.to_string(),
        }),
    },
    Flag {
        name: "latency",
        variable: "LATENCY",
        value: "DURATION",
        default: "0s",
        meaning: "mean latency of an ordinary request; gamma distributed, shape 3",
        accepted: ACCEPTED_LATENCY,
        sets: Sets::Probe(ProbeSetting {
            set: |settings, value| latency(value).map(|value| settings.latency = value),
            write: |settings| duration::write(settings.latency),
        }),
    },
    Flag {
        name: "slow-latency",
        variable: "SLOW_LATENCY",
        value: "DURATION",
        default: "9s",
        meaning: "mean latency of a slow request; gamma distributed, shape 30",
        accepted: ACCEPTED_LATENCY,
        sets: Sets::Probe(ProbeSetting {
            set: |settings, value| latency(value).map(|value| settings.slow_latency = value),
            write: |settings| duration::write(settings.slow_latency),
        }),
    },
    Flag {
        name: "work",
        variable: "WORK",
        value: "DURATION",
        default: "0s",
        meaning: "CPU time that a successful request takes, at most 1 s",
        accepted: "a duration of at most 1s with its unit, such as 20ms",
        sets: Sets::Probe(ProbeSetting {
            set: |settings, value| {
                duration::parse(value, Duration::ZERO..=MAX_WORK).map(|value| settings.work = value)
            },
            write: |settings| duration::write(settings.work),
        }),
    },
    Flag {
        name: "fault-injection",
        variable: "FAULT_INJECTION",
        value: "",
        default: "off",
        meaning: "on: clients may change /probe; all: more routes and the process",
        accepted: "off, on or all",
        sets: Sets::Service(|config, value| {
            config.fault_injection = match (value, switch(value)) {
                ("all", _) => FaultInjection::All,
                (_, Some(true)) => FaultInjection::On,
                (_, Some(false)) => FaultInjection::Off,
                (_, None) => return None,
            };
            Some(())
        }),
    },
    Flag {
        name: "start-delay",
        variable: "START_DELAY",
        value: "DURATION",
        default: "0s",
        meaning: "wait this long before listening: a slow start",
        accepted: ACCEPTED_LATENCY,
        sets: Sets::Service(|config, value| latency(value).map(|value| config.start_delay = value)),
    },
    Flag {
        name: "shutdown-delay",
        variable: "SHUTDOWN_DELAY",
        value: "DURATION",
        default: "0s",
        meaning: "after SIGTERM, keep serving this long with /readyz at 503",
        accepted: ACCEPTED_LATENCY,
        sets: Sets::Service(|config, value| {
            latency(value).map(|value| config.shutdown_delay = value)
        }),
    },
    Flag {
        name: "exit-after",
        variable: "EXIT_AFTER",
        value: "DURATION",
        default: NEVER,
        meaning: "end the process abruptly after this time: a crash",
        accepted: ACCEPTED_EXIT_AFTER,
        sets: Sets::Service(|config, value| {
            config.exit_after = match value {
                NEVER => None,
                value => Some(duration::parse(value, EXIT_AFTER_RANGE)?),
            };
            Some(())
        }),
    },
    Flag {
        name: "exit-code",
        variable: "EXIT_CODE",
        value: "NUMBER",
        default: "1",
        meaning: "exit code of --exit-after, 0 to 255",
        accepted: ACCEPTED_EXIT_CODE,
        sets: Sets::Service(|config, value| parse(value).map(|value| config.exit_code = value)),
    },
    Flag {
        name: "random-seed",
        variable: "RANDOM_SEED",
        value: "NUMBER",
        default: "from the system",
        meaning: "makes the failures and latencies repeatable",
        accepted: "a whole number from 0 to 18446744073709551615",
        sets: Sets::Service(|config, value| {
            parse(value).map(|value| config.random_seed = Some(value))
        }),
    },
    Flag {
        name: "app-version",
        variable: "APP_VERSION",
        value: "TEXT",
        default: "1",
        meaning: "the version label of app_version_info",
        accepted: "text in UTF-8",
        sets: Sets::Service(|config, value| parse(value).map(|value| config.app_version = value)),
    },
    Flag {
        name: "app-config",
        variable: "APP_CONFIG",
        value: "TEXT",
        default: "develop",
        meaning: "the config label of app_version_info",
        accepted: "text in UTF-8",
        sets: Sets::Service(|config, value| parse(value).map(|value| config.app_config = value)),
    },
    Flag {
        name: "max-connections",
        variable: "MAX_CONNECTIONS",
        value: "NUMBER",
        default: "10000",
        meaning: "maximum number of open connections",
        accepted: "a whole number from 1 to 1000000",
        sets: Sets::Service(|config, value| {
            let value = parse(value).filter(|value| (1..=1_000_000).contains(value))?;
            config.max_connections = value;
            Some(())
        }),
    },
    Flag {
        name: "allowed-host",
        variable: "ALLOWED_HOST",
        value: "NAME",
        default: "none",
        meaning: "host name under which browsers may change settings",
        accepted: "none, or a host name without a port, such as probe.example.com",
        sets: Sets::Service(|config, value| {
            let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            let is_name = !value.is_empty() && value.bytes().all(is_name_byte);
            config.allowed_host = (value != "none").then(|| value.to_owned());
            is_name.then_some(())
        }),
    },
    Flag {
        name: "access-log",
        variable: "ACCESS_LOG",
        value: "",
        default: "off",
        meaning: "print a line per request on standard output: on or json",
        accepted: "off, on or json",
        sets: Sets::Service(|config, value| {
            config.access_log = match (value, switch(value)) {
                ("json", _) => AccessLogFormat::Json,
                (_, Some(true)) => AccessLogFormat::Text,
                (_, Some(false)) => AccessLogFormat::Off,
                (_, None) => return None,
            };
            Some(())
        }),
    },
];

/// The name of the subcommand.
const HEALTHCHECK: &str = "healthcheck";

const ACCEPTED_FRACTION: &str = "a number from 0 to 1, such as 0.01";
const ACCEPTED_LATENCY: &str = "a duration of at most 1h with its unit, such as 300ms or 9s";

fn parse<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

fn fraction(value: &str) -> Option<f64> {
    let fraction = parse(value).filter(|fraction| (0.0..=1.0).contains(fraction));
    // -0 is accepted, but must be shown as 0.
    fraction.map(f64::abs)
}

fn latency(value: &str) -> Option<Duration> {
    duration::parse(value, Duration::ZERO..=MAX_LATENCY)
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" | "true" | "1" => Some(true),
        "off" | "false" | "0" => Some(false),
        _ => None,
    }
}

impl Command {
    /// Parses the command line, given without the program's name, and the environment. An empty
    /// environment variable counts as not set.
    pub fn parse(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let mut given: [Option<OsString>; FLAGS.len()] = Default::default();
        let mut healthcheck = false;
        // The position of the preceding argument if it is a switch without a value.
        let mut pending_switch = None;
        let mut parser = Parser::from_args(arguments);
        while let Some(argument) = parser.next().map_err(|error| see_help(&error))? {
            match argument {
                // `--fault-injection all` means `--fault-injection=all`. If the value is not accepted,
                // the message below names the flag.
                Arg::Value(value) if pending_switch.is_some() && value != HEALTHCHECK => {
                    if let Some(position) = pending_switch.take() {
                        given[position] = Some(value);
                    }
                }
                Arg::Long("help") | Arg::Short('h') => return Ok(Self::Help),
                Arg::Long("version") | Arg::Short('V') => return Ok(Self::Version),
                Arg::Value(value) if value == HEALTHCHECK => healthcheck = true,
                Arg::Long(name) => {
                    let position = FLAGS.iter().position(|flag| flag.name == name);
                    let Some(position) = position else {
                        return Err(see_help(&argument.unexpected()));
                    };
                    let flag = &FLAGS[position];
                    let value = if flag.value.is_empty() {
                        let value = parser.optional_value();
                        pending_switch = value.is_none().then_some(position);
                        value.unwrap_or_else(|| "on".into())
                    } else {
                        pending_switch = None;
                        parser.value().map_err(|_| flag.missing_value())?
                    };
                    given[position] = Some(value);
                }
                _ => return Err(see_help(&argument.unexpected())),
            }
        }

        let config = configure(given, environment)?;
        Ok(if healthcheck {
            Self::Healthcheck(config.listen)
        } else {
            Self::Serve(config)
        })
    }
}

/// Applies the flags, and the environment variables of flags that are not given, to the defaults.
fn configure(
    given: [Option<OsString>; FLAGS.len()],
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    for (flag, given) in FLAGS.iter().zip(given) {
        let Flag { name, variable, .. } = flag;
        if let Some(value) = given {
            flag.apply(&mut config, &value, |value| format!("--{name} {value}"))?;
        } else if let Some(value) = environment(variable).filter(|value| !value.is_empty()) {
            flag.apply(&mut config, &value, |value| {
                format!("{variable}={value} (--{name})")
            })?;
        }
    }
    Ok(config)
}

impl Flag {
    /// Sets the value, if it is accepted.
    fn set(&self, config: &mut Config, value: &str) -> Option<()> {
        match self.sets {
            Sets::Service(set) => set(config, value),
            Sets::Probe(setting) => (setting.set)(&mut config.probe, value),
        }
    }

    /// Returns the error of a flag without a value.
    fn missing_value(&self) -> ConfigError {
        ConfigError(format!("--{}: expected {}", self.name, self.accepted))
    }

    /// Sets the value, or returns the error. `describe` formats the flag or variable with the value.
    fn apply(
        &self,
        config: &mut Config,
        value: &OsString,
        describe: impl Fn(&str) -> String,
    ) -> Result<(), ConfigError> {
        let rejected = |accepted| {
            let value = one_line(&value.to_string_lossy());
            ConfigError(format!("{}: expected {accepted}", describe(&value)))
        };
        let set = value.to_str().and_then(|value| self.set(config, value));
        set.ok_or_else(|| rejected(self.accepted))?;
        // The row of --server precedes the row of --fail-with, so it has been applied here.
        if config.server.supports_all_faults() || config.probe.fail_with.is_status() {
            Ok(())
        } else {
            Err(rejected(FailWith::ACCEPTED_BY_TINY_HTTP))
        }
    }
}

fn see_help(error: &lexopt::Error) -> ConfigError {
    ConfigError(format!("{}; see --help", one_line(&error.to_string())))
}

/// Keeps a message on one line, whatever was on the command line.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Returns the text of `--help`.
pub fn help() -> String {
    let mut help = String::from(
        "A very small HTTP service, instrumented for Prometheus.

Usage: tiny-probe [FLAGS]                    serve /, /probe, /metrics, /healthz, /readyz
                                             and, with --fault-injection, /faults
       tiny-probe healthcheck [--listen …]   request /healthz from a running server; exit 0 or 1

Flags, each with its environment variable and its default:
",
    );
    for flag in &FLAGS {
        let syntax = match flag.value {
            "" => format!("--{}[=VALUE]", flag.name),
            value => format!("--{} {value}", flag.name),
        };
        let setting = format!("[{}: {}]", flag.variable, flag.default);
        for (left, right) in [(&*syntax, flag.meaning), ("", &setting)] {
            help.extend(["  ", left, &" ".repeat(29 - left.len()), right, "\n"]);
        }
    }
    help += "  -h, --help                   print this\n  -V, --version                print the version\n";
    if cfg!(feature = "tiny-http") {
        help += "
With --server tiny-http, a /probe request that is delayed or takes CPU time delays all others.
";
    }
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server other than the default, if the build has one.
    #[cfg(feature = "tiny-http")]
    const OTHER_SERVER: Server = Server::TinyHttp;
    #[cfg(not(feature = "tiny-http"))]
    const OTHER_SERVER: Server = Server::EventLoop;

    fn command(arguments: &str, environment: &[(&str, &str)]) -> Result<Command, ConfigError> {
        Command::parse(
            arguments.split_whitespace().map(OsString::from),
            |variable| {
                environment
                    .iter()
                    .find(|(name, _)| *name == variable)
                    .map(|(_, value)| value.into())
            },
        )
    }

    fn config(arguments: &str, environment: &[(&str, &str)]) -> Config {
        match command(arguments, environment) {
            Ok(Command::Serve(config)) => config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_flags_and_variables_every_setting_has_its_default() {
        assert_eq!(config("", &[]), Config::default());
    }

    #[test]
    fn a_port_alone_means_every_address() {
        for (text, listen) in [
            (":8080", Listen::EveryAddress(8080)),
            (":0", Listen::EveryAddress(0)),
            ("0.0.0.0:80", Listen::Address(([0, 0, 0, 0], 80).into())),
            ("[::]:80", Listen::Address(([0; 8], 80).into())),
        ] {
            assert_eq!(config("", &[("LISTEN", text)]).listen, listen);
            assert_eq!(listen.to_string(), text);
        }
        for text in [
            ":", "8080", ":+80", ":-1", ":65536", "::", "::1:80", "[]:80", "*:80",
        ] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_documented_defaults_are_the_real_ones() {
        for flag in FLAGS.iter().filter(|flag| flag.name != "random-seed") {
            let mut changed = Config {
                listen: "[::1]:1".parse().unwrap(),
                server: OTHER_SERVER,
                probe: ProbeSettings {
                    fail_rate: 0.5,
                    fail_with: FailWith::Status(Status::BadGateway),
                    fail_latency: Duration::MAX,
                    slow_rate: 0.5,
                    latency: Duration::MAX,
                    slow_latency: Duration::MAX,
                    work: Duration::MAX,
                },
                fault_injection: FaultInjection::All,
                start_delay: Duration::MAX,
                shutdown_delay: Duration::MAX,
                exit_after: Some(Duration::MAX),
                exit_code: 255,
                random_seed: None,
                app_version: String::new(),
                app_config: String::new(),
                max_connections: 0,
                allowed_host: Some("a".into()),
                access_log: AccessLogFormat::Json,
            };
            let before = changed.clone();
            flag.set(&mut changed, flag.default).expect(flag.name);
            let is_only_value = flag.name == "server" && OTHER_SERVER == Server::EventLoop;
            assert!(changed != before || is_only_value, "{}", flag.name);
            for other in &FLAGS {
                if other.name != "random-seed" {
                    other.set(&mut changed, other.default).expect(other.name);
                }
            }
            assert_eq!(changed, Config::default());
        }
    }

    #[test]
    fn every_range_ends_where_the_documents_say() {
        for (flag, accepted, rejected) in [
            ("max-connections", "1", "0"),
            ("max-connections", "1000000", "1000001"),
            (
                "random-seed",
                "18446744073709551615",
                "18446744073709551616",
            ),
            ("exit-code", "255", "256"),
            ("fail-rate", "1", "1.000001"),
            ("slow-rate", "0", "-0.000001"),
            ("latency", "1h", "3600001ms"),
            ("fail-latency", "1h", "3600001ms"),
            ("slow-latency", "1h", "3600001ms"),
            ("start-delay", "1h", "3600001ms"),
            ("shutdown-delay", "1h", "3600001ms"),
            ("work", "1s", "1000001us"),
            ("exit-after", "24h", "86400001ms"),
        ] {
            let parse = |value| command(&format!("--{flag}={value}"), &[]);
            assert!(parse(accepted).is_ok(), "{flag} {accepted}");
            assert!(parse(rejected).is_err(), "{flag} {rejected}");
        }
    }

    #[test]
    fn a_flag_without_its_value_says_what_is_accepted() {
        for flag in FLAGS.iter().filter(|flag| !flag.value.is_empty()) {
            for other in ["", "--fail-rate=0.5 "] {
                let error = command(&format!("{other}--{}", flag.name), &[]).unwrap_err();
                let expected = format!("--{}: expected {}", flag.name, flag.accepted);
                assert_eq!(error.to_string(), expected);
            }
        }
        let error = command("--latency", &[]).unwrap_err().to_string();
        assert!(
            error.starts_with("--latency: expected a duration of at most 1h"),
            "{error}"
        );
    }

    #[test]
    fn a_flag_overrides_its_variable() {
        let environment = [("FAIL_RATE", "0.5"), ("LATENCY", "1s"), ("SLOW_RATE", "")];
        let config = config("--fail-rate=0.25 --access-log", &environment);
        assert!((config.probe.fail_rate - 0.25).abs() < f64::EPSILON);
        assert_eq!(config.probe.latency, Duration::from_secs(1));
        assert_eq!(config.probe.slow_rate.to_bits(), 0);
        assert_eq!(config.access_log, AccessLogFormat::Text);
    }

    #[test]
    fn every_flag_and_every_variable_is_read() {
        let expected = Config {
            listen: "[::1]:9090".parse().unwrap(),
            server: OTHER_SERVER,
            probe: ProbeSettings {
                fail_rate: 1.0,
                fail_with: FailWith::Status(Status::ServiceUnavailable),
                fail_latency: Duration::from_secs(2),
                slow_rate: 0.125,
                latency: Duration::from_millis(300),
                slow_latency: Duration::from_secs(90),
                work: Duration::from_millis(20),
            },
            fault_injection: FaultInjection::All,
            start_delay: Duration::from_secs(1),
            shutdown_delay: Duration::from_secs(2),
            exit_after: Some(Duration::from_secs(3)),
            exit_code: 4,
            random_seed: Some(u64::MAX),
            app_version: "2".into(),
            app_config: "production".into(),
            max_connections: 1,
            allowed_host: Some("probe.example.com".into()),
            access_log: AccessLogFormat::Json,
        };
        let server = OTHER_SERVER.to_string();
        let values = [
            ("LISTEN", "[::1]:9090"),
            ("SERVER", &server),
            ("FAIL_RATE", "1"),
            ("FAIL_WITH", "503"),
            ("FAIL_LATENCY", "2s"),
            ("SLOW_RATE", ".125"),
            ("LATENCY", "300ms"),
            ("SLOW_LATENCY", "1m30s"),
            ("WORK", "20ms"),
            ("FAULT_INJECTION", "all"),
            ("START_DELAY", "1s"),
            ("SHUTDOWN_DELAY", "2s"),
            ("EXIT_AFTER", "3s"),
            ("EXIT_CODE", "4"),
            ("RANDOM_SEED", "18446744073709551615"),
            ("APP_VERSION", "2"),
            ("APP_CONFIG", "production"),
            ("MAX_CONNECTIONS", "1"),
            ("ALLOWED_HOST", "probe.example.com"),
            ("ACCESS_LOG", "json"),
        ];
        assert_eq!(config("", &values), expected);
        let flags: Vec<String> = values
            .iter()
            .map(|(name, value)| format!("--{}={value}", name.to_lowercase().replace('_', "-")))
            .collect();
        assert_eq!(config(&flags.join(" "), &[]), expected);
    }

    #[test]
    fn fault_injection_is_off_on_or_all() {
        let injection = |arguments| config(arguments, &[]).fault_injection;
        assert_eq!(injection(""), FaultInjection::Off);
        for on in [
            "--fault-injection",
            "--fault-injection=on",
            "--fault-injection=1",
        ] {
            assert_eq!(injection(on), FaultInjection::On, "{on}");
        }
        assert_eq!(injection("--fault-injection=off"), FaultInjection::Off);
        assert_eq!(injection("--fault-injection=all"), FaultInjection::All);
        assert_eq!(injection("--fault-injection all"), FaultInjection::All);
        let config = config("--fault-injection all --access-log off", &[]);
        assert_eq!(config.fault_injection, FaultInjection::All);
        assert_eq!(config.access_log, AccessLogFormat::Off);
        for unknown in ["--fault-injection ALL", "--fault-injection on all", "all"] {
            assert!(command(unknown, &[]).is_err(), "{unknown}");
        }
        assert!(matches!(
            command("--fault-injection healthcheck", &[]),
            Ok(Command::Healthcheck(_))
        ));
        assert!(command("--fault-injection=ALL", &[]).is_err());
    }

    #[cfg(feature = "tiny-http")]
    #[test]
    fn tiny_http_accepts_only_statuses_for_fail_with() {
        for (arguments, environment) in [
            ("--fail-with cut --server tiny-http", &[][..]),
            ("--fail-with cut", &[("SERVER", "tiny-http")]),
        ] {
            let error = command(arguments, environment).unwrap_err().to_string();
            assert!(
                error.starts_with("--fail-with cut: expected a status ("),
                "{error}"
            );
            assert!(
                error.ends_with("--server tiny-http can send nothing else"),
                "{error}"
            );
        }
        config("--fail-with 503 --server tiny-http", &[]);
        config("--fail-with cut --server event-loop", &[]);
    }

    #[test]
    fn the_subcommand_help_and_version_are_recognized() {
        let listen = "127.0.0.1:9".parse().unwrap();
        for command_line in [
            "healthcheck --listen 127.0.0.1:9",
            "--listen 127.0.0.1:9 healthcheck",
        ] {
            assert_eq!(command(command_line, &[]), Ok(Command::Healthcheck(listen)));
        }
        assert_eq!(
            command("healthcheck", &[("LISTEN", "127.0.0.1:9")]),
            Ok(Command::Healthcheck(listen))
        );
        assert_eq!(command("--help", &[]), Ok(Command::Help));
        assert_eq!(command("-V", &[]), Ok(Command::Version));
    }

    #[cfg(feature = "tiny-http")]
    #[test]
    fn the_readme_lists_every_setting() {
        let readme = include_str!("../README.md");
        for flag in &FLAGS {
            let default = match flag.default {
                "from the system" => flag.default.to_owned(),
                default => format!("`{default}`"),
            };
            let row = format!(
                "| `--{}` | `{}` | {default} | {} |\n",
                flag.name, flag.variable, flag.meaning
            );
            assert!(readme.contains(&row), "{row}");
        }
    }

    #[test]
    fn help_names_every_flag_variable_and_default() {
        let help = help();
        for flag in &FLAGS {
            assert!(help.contains(&format!("--{}", flag.name)), "{help}");
            assert!(help.contains(&format!("[{}: {}]", flag.variable, flag.default)));
        }
        for line in help.lines() {
            assert!(line.chars().count() <= 96, "{line}");
        }
    }
}
