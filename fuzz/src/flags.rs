//! Checks that any command line and environment result either in valid settings with which the service
//! works, or in one line that says what is wrong.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bounded_http::{Request, Service};
use tiny_probe::app::App;
use tiny_probe::config::{AccessLogFormat, Command, Config, ConfigError, FLAGS, FaultInjection};
use tiny_probe::fail_with::FailWith;

/// The input consists of words separated by NUL. As with env(1), variables come first, then arguments.
pub fn check(input: &[u8]) {
    let words: Vec<&[u8]> = input.split(|byte| *byte == 0).collect();
    let variables: Vec<(&str, OsString)> = words.iter().map_while(|word| variable(word)).collect();
    let arguments = &words[variables.len()..];
    let arguments = arguments
        .iter()
        .map(|word| OsString::from_vec(word.to_vec()));
    let command = Command::parse(arguments, |name| {
        let mut values = variables.iter().filter(|variable| variable.0 == name);
        values.next().map(|(_, value)| value.clone())
    });
    match command {
        Ok(Command::Serve(config)) => check_settings(&config),
        Ok(Command::Healthcheck(_) | Command::Help | Command::Version) => {}
        Err(error) => check_message(&error),
    }
}

fn variable(word: &[u8]) -> Option<(&'static str, OsString)> {
    FLAGS.iter().find_map(|flag| {
        let value = word.strip_prefix(flag.variable.as_bytes())?;
        let value = value.strip_prefix(b"=")?;
        Some((flag.variable, OsString::from_vec(value.to_vec())))
    })
}

fn check_settings(config: &Config) {
    assert!((0.0..=1.0).contains(&config.probe.fail_rate));
    assert!((0.0..=1.0).contains(&config.probe.slow_rate));
    assert!(config.probe.fail_latency <= Duration::from_secs(3600));
    assert!(config.probe.latency <= Duration::from_secs(3600));
    assert!(config.probe.slow_latency <= Duration::from_secs(3600));
    assert!(config.probe.work <= Duration::from_secs(1));
    assert!((1..=1_000_000).contains(&config.max_connections));
    assert_eq!(
        Command::parse(arguments(config), |_| None),
        Ok(Command::Serve(config.clone()))
    );

    let mut app = App::new(config);
    let mut get = |target| {
        let reply = app.answer(&Request::new("GET", target));
        String::from_utf8(reply.body().to_vec()).expect("bodies are text")
    };
    for _ in 0..4 {
        get("/probe");
    }
    // The page has its own script. Flags cannot add one.
    assert_eq!(get("/").matches("<script").count(), 1);
    let exposition = get("/metrics");
    for line in exposition.split_terminator('\n') {
        let value = line.rsplit_once(' ').map(|(_, value)| value.parse::<f64>());
        assert!(
            line.starts_with("# ") || matches!(value, Some(Ok(_))),
            "{line:?}"
        );
    }
}

/// Returns a command line that results in these settings.
fn arguments(config: &Config) -> Vec<OsString> {
    let nanoseconds = |latency: Duration| format!("{}ns", latency.as_nanos());
    let mut words = vec![
        format!("--listen={}", config.listen),
        format!("--server={}", config.server),
        format!("--fail-rate={}", config.probe.fail_rate),
        format!("--fail-with={}", config.probe.fail_with.name()),
        format!("--fail-latency={}", nanoseconds(config.probe.fail_latency)),
        format!("--slow-rate={}", config.probe.slow_rate),
        format!("--latency={}", nanoseconds(config.probe.latency)),
        format!("--slow-latency={}", nanoseconds(config.probe.slow_latency)),
        format!("--work={}", nanoseconds(config.probe.work)),
        format!(
            "--fault-injection={}",
            match config.fault_injection {
                FaultInjection::Off => "off",
                FaultInjection::On => "on",
                FaultInjection::All => "all",
            }
        ),
        format!("--start-delay={}", nanoseconds(config.start_delay)),
        format!("--shutdown-delay={}", nanoseconds(config.shutdown_delay)),
        format!("--exit-code={}", config.exit_code),
        format!("--app-version={}", config.app_version),
        format!("--app-config={}", config.app_config),
        format!("--max-connections={}", config.max_connections),
        format!(
            "--allowed-host={}",
            config.allowed_host.as_deref().unwrap_or("none")
        ),
        format!(
            "--access-log={}",
            match config.access_log {
                AccessLogFormat::Off => "off",
                AccessLogFormat::Text => "on",
                AccessLogFormat::Json => "json",
            }
        ),
    ];
    words.extend(
        config
            .exit_after
            .map(|after| format!("--exit-after={}", nanoseconds(after))),
    );
    words.extend(
        config
            .random_seed
            .map(|seed| format!("--random-seed={seed}")),
    );
    words.into_iter().map(OsString::from).collect()
}

fn check_message(error: &ConfigError) {
    let message = error.to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
    let is_bad_value = FLAGS.iter().any(|flag| {
        message.contains(&format!("--{}", flag.name)) && message.contains(flag.accepted)
    });
    let is_bad_value = is_bad_value || message.contains(FailWith::ACCEPTED_BY_TINY_HTTP);
    assert!(
        is_bad_value || message.ends_with("; see --help"),
        "{message:?}"
    );
}
