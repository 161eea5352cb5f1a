//! The orderly shutdown: every request received by then is answered, and then its connection is closed.
//!
//! ```text
//! stop signal           -> responses close their connections, and so does a moment of silence
//! the same moment later -> accept what the kernel has completed, and close the listener
//! grace period over     -> replace delayed replies with a 503
//! half a second later   -> end, even if some responses are unsent
//! ```

use std::time::{Duration, Instant};

use super::EventLoop;
use crate::connection::KEEP_ALIVE_TIMEOUT_WHILE_STOPPING;
use crate::listener::BACKLOG;
use crate::service::Service;

/// How long the server waits for the last responses to be sent: the 503s that replace delayed replies
/// when the grace period is over.
pub(super) const LAST_RESPONSES_TIME: Duration = Duration::from_millis(500);

/// The schedule of an orderly shutdown.
pub(super) struct Stop {
    /// When the listener is closed. Until then clients can still connect, so that a service that
    /// restarts is without a listener only for a short time.
    listener_closes: Instant,
    /// When delayed replies are replaced with a 503.
    grace_ends: Instant,
    /// When the server stops waiting for these to be sent. `None` until the grace period is over.
    last_responses_end: Option<Instant>,
}

impl<V: Service> EventLoop<V> {
    /// Starts an orderly shutdown: every received request is answered, and then its connection is
    /// closed.
    pub(super) fn stop(&mut self) {
        if self.stop.is_some() {
            return;
        }
        let now = self.shared.now;
        // Clients whose connections are closed now may connect again at once.
        let listener_closes = if self.clients.is_empty() {
            now
        } else {
            now + KEEP_ALIVE_TIMEOUT_WHILE_STOPPING
        };
        self.stop = Some(Stop {
            listener_closes,
            grace_ends: now + self.grace,
            last_responses_end: None,
        });
        self.shared.is_stopping = true;
        let keys: Vec<usize> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.clients[key].stop(now);
            let deadline = self.clients[key].deadline();
            self.plan_sweep(deadline);
            self.queue_turn(key);
        }
    }

    /// Takes the steps of the shutdown that are due.
    pub(super) fn advance_stop(&mut self) {
        let Some(stop) = &self.stop else {
            return;
        };
        let now = self.shared.now;
        let closes_listener = self.listener.is_some() && stop.listener_closes <= now;
        let ends_grace = stop.grace_ends <= now && stop.last_responses_end.is_none();
        if closes_listener {
            self.close_listener();
        }
        if ends_grace {
            self.end_grace();
        }
    }

    /// Closes the listener. This resets connections that the kernel has completed, so they are accepted
    /// first, whatever the limit.
    fn close_listener(&mut self) {
        self.may_accept = true;
        self.accept_paused_until = None;
        self.accept(BACKLOG.into(), usize::MAX);
        self.listener = None;
        self.may_accept = false;
    }

    /// Makes all clients whose reply is delayed, or waits for its work, get a 503 instead.
    fn end_grace(&mut self) {
        let now = self.shared.now;
        if let Some(stop) = &mut self.stop {
            stop.last_responses_end = Some(now + LAST_RESPONSES_TIME);
        }
        self.shared.is_grace_over = true;
        // Requests that were received before the stop signal are answered by then.
        self.shared.closes_from = Some(now + LAST_RESPONSES_TIME / 2);
        self.shared.work_queue.clear();
        let pending = self
            .clients
            .iter()
            .filter(|(_, client)| client.reply_due().is_some());
        let pending: Vec<usize> = pending.map(|(key, _)| key).collect();
        for key in pending {
            self.queue_turn(key);
        }
    }

    /// Returns when the next step of the shutdown is due.
    pub(super) fn next_stop_step(&self, stop: &Stop) -> Instant {
        let next = stop.last_responses_end.unwrap_or(stop.grace_ends);
        if self.listener.is_some() {
            next.min(stop.listener_closes)
        } else {
            next
        }
    }

    /// Returns whether the shutdown is complete.
    pub(super) fn has_ended(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| {
            let last_responses_end = stop.last_responses_end;
            last_responses_end.is_some_and(|end| end <= self.shared.now)
                || (self.listener.is_none() && self.clients.is_empty())
        })
    }
}
