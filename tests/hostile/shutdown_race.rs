//! A shutdown loses no request: neither those on their way when the signal arrives, nor those that
//! outlast the grace period.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::reusing_client::{Loss, Outcome, ReusingClient, SHORT_SILENCE};
use crate::scenario::Scenario;
use crate::support::Service;

const STOPS: u64 = 12;

/// How a client sends its requests.
#[derive(Clone, Copy)]
enum Habit {
    /// One after the other on one connection, with pauses between them.
    Reuse { pause: Duration },
    /// One, and another on the same connection this long after the signal.
    WakeUp { after: Duration },
    /// Each on a new connection, with pauses between them.
    Connect { pause: Duration },
}

/// What one client received during one shutdown.
#[derive(Default)]
struct Tally {
    responses: usize,
    losses: Vec<Loss>,
}

/// Sends SIGTERM immediately, without starting another program.
fn terminate(service: &Service) {
    let pid = Pid::from_raw(service.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

/// Sends requests until the service accepts no more.
fn send_requests(service: &Service, habit: Habit, signal: &OnceLock<Instant>) -> Tally {
    let mut tally = Tally::default();
    let mut client = ReusingClient::new(service);
    loop {
        let outcome = client.get("/probe", Duration::ZERO);
        // The listener and silent connections are closed 200 ms after the signal.
        let is_over = signal
            .get()
            .is_some_and(|signal| signal.elapsed() >= SHORT_SILENCE);
        match outcome {
            Outcome::Response(response) => {
                assert_eq!(response.status, 200, "{response:?}");
                tally.responses += 1;
                let is_awake = matches!(habit, Habit::WakeUp { .. }) && signal.get().is_some();
                if is_awake || is_over && response.field("Connection") == Some("close") {
                    return tally;
                }
            }
            Outcome::Refused => {
                assert!(signal.get().is_some(), "refused before the signal");
                return tally;
            }
            Outcome::Lost(loss) => {
                let was_soon = signal
                    .get()
                    .is_none_or(|signal| loss.sent_at < *signal + SHORT_SILENCE);
                let was_active = loss.was_reused && loss.silence < SHORT_SILENCE;
                if was_soon || was_active {
                    tally.losses.push(loss);
                }
                if signal.get().is_some() {
                    return tally;
                }
            }
        }
        match habit {
            Habit::Reuse { pause } => thread::sleep(pause),
            Habit::WakeUp { after } => {
                let until = *signal.wait() + after;
                thread::sleep(until.saturating_duration_since(Instant::now()));
            }
            Habit::Connect { pause } => {
                client.disconnect();
                thread::sleep(pause);
            }
        }
    }
}

#[test]
fn requests_on_their_way_are_answered_when_the_service_stops() {
    let mut habits = Vec::new();
    for number in 0..8 {
        let pause = Duration::from_millis(1 + 3 * number);
        habits.push(Habit::Reuse { pause });
        let after = Duration::from_millis(8 * number);
        habits.push(Habit::WakeUp { after });
        let pause = Duration::from_millis(10 + 3 * number);
        habits.push(Habit::Connect { pause });
    }
    let mut responses = 0;
    let mut losses: Vec<Loss> = Vec::new();
    for stop in 0..STOPS {
        let mut scenario = Scenario::start(&[]);
        let signal = OnceLock::new();
        thread::scope(|scope| {
            let clients: Vec<_> = habits
                .iter()
                .map(|habit| scope.spawn(|| send_requests(&scenario, *habit, &signal)))
                .collect();
            // The signal arrives at different moments of the pauses.
            thread::sleep(Duration::from_millis(150 + 7 * stop));
            signal.set(Instant::now()).unwrap();
            terminate(&scenario);
            for client in clients {
                let tally = client.join().unwrap();
                responses += tally.responses;
                losses.extend(tally.losses);
            }
        });
        assert_eq!(scenario.wait(), Some(0));
        let took = signal.get().unwrap().elapsed();
        assert!(
            took < Duration::from_secs(5),
            "the end took {took:?} with nothing delayed"
        );
    }
    println!("{responses} responses, {} requests lost", losses.len());
    assert!(
        losses.is_empty(),
        "{} requests lost in {STOPS} stops, {responses} answered; the first: {:?}",
        losses.len(),
        losses[0]
    );
}

/// Returns the statuses in the access log's lines for /probe.
fn logged_statuses(service: &mut Service) -> Vec<String> {
    service
        .stdout()
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields[3].starts_with("/probe"))
        .map(|fields| fields[4].to_owned())
        .collect()
}

#[test]
fn a_request_that_outlasts_the_grace_period_gets_503_and_its_line() {
    let mut scenario = Scenario::start(&["--access-log", "--fault-injection"]);
    let mut delayed = scenario.clients(20, |client| client.send_delayed("/probe?delay=20s"));
    let mut soon = scenario.connect();
    soon.send_delayed("/probe?delay=2s");
    let told = Instant::now();
    terminate(&scenario);
    let response = soon.expect_last_response(200);
    assert_eq!(response.body, "I'm ok!");
    delayed.each(|client| _ = client.expect_last_response(503));
    let took = told.elapsed();
    let expected = Duration::from_secs(5)..Duration::from_secs(15);
    assert!(expected.contains(&took), "the grace period took {took:?}");
    assert_eq!(scenario.wait(), Some(0));
    let mut expected = vec!["503"; 20];
    expected.insert(0, "200");
    assert_eq!(logged_statuses(&mut scenario), expected);
}

#[test]
fn requests_behind_one_that_outlasts_the_grace_period_get_their_responses() {
    let mut scenario = Scenario::start(&["--fault-injection"]);
    let mut client = scenario.connect();
    client.send_delayed("/probe?delay=20s");
    client.send_request("GET", "/probe?delay=20s");
    client.send_request("GET", "/healthz");
    terminate(&scenario);
    for status in [503, 503, 200] {
        assert_eq!(client.read_response().status, status);
    }
    client.expect_close();
    assert_eq!(scenario.wait(), Some(0));
}

#[test]
fn work_that_outlasts_the_grace_period_gets_503_and_its_line() {
    const CLIENTS: usize = 20;
    let mut scenario = Scenario::start(&["--access-log", "--work", "1s"]);
    let mut clients = scenario.silent_clients(CLIENTS);
    clients.send_request("GET", "/probe");
    terminate(&scenario);
    let mut statuses = Vec::new();
    for client in clients.iter_mut() {
        let response = client.read_response();
        assert_eq!(response.field("Connection"), Some("close"));
        client.expect_close();
        statuses.push(response.status.to_string());
    }
    assert_eq!(scenario.wait(), Some(0));
    let mut logged = logged_statuses(&mut scenario);
    statuses.sort();
    logged.sort();
    assert_eq!(logged, statuses);
    let failed = statuses.iter().filter(|status| *status == "503").count();
    println!("{failed} of {CLIENTS} requests got 503");
    assert!(failed >= CLIENTS / 2, "20 s of work in 5 s: {statuses:?}");
}
