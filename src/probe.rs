//! What /probe does: succeed, fail, take its time, work, as often and as much as it is told to.

use std::time::Duration;

use fastrand::Rng;

use crate::config::ProbeSettings;

/// The shape of an ordinary latency, and of a failure's: a wide hump with a tail.
const ORDINARY_SHAPE: u32 = 3;
/// The shape of a slow one: a narrow hump around the mean.
const SLOW_SHAPE: u32 = 30;

/// Draws what happens to each request, from the rates and latencies in force.
pub struct Probe {
    random: Rng,
}

/// What happens to one request to /probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It fails, after this delay.
    Fail(Duration),
    /// It succeeds, after this delay.
    Succeed(Duration),
}

impl Probe {
    /// Creates the same seed gives, with the same settings, the same outcomes in the same order.
    pub fn new(random_seed: Option<u64>) -> Self {
        Self {
            random: random_seed.map_or_else(Rng::new, Rng::with_seed),
        }
    }

    /// Returns the outcome of the next request, with these settings in force.
    pub fn draw(&mut self, settings: &ProbeSettings) -> Outcome {
        if self.happens(settings.fail_rate) {
            Outcome::Fail(self.gamma(ORDINARY_SHAPE, settings.fail_latency))
        } else if self.happens(settings.slow_rate) {
            Outcome::Succeed(self.gamma(SLOW_SHAPE, settings.slow_latency))
        } else {
            Outcome::Succeed(self.gamma(ORDINARY_SHAPE, settings.latency))
        }
    }

    /// Returns whether something happens that happens at this rate. A rate of 0 draws nothing: it is the
    /// default, and the default is fast.
    fn happens(&mut self, rate: f64) -> bool {
        rate > 0.0 && self.random.f64() < rate
    }

    /// Draws from a gamma distribution of whole-number shape: the sum of that many exponentials.
    fn gamma(&mut self, shape: u32, mean: Duration) -> Duration {
        if mean.is_zero() {
            return Duration::ZERO;
        }
        // `f64` is at least 0 and less than 1, so that the logarithm is of more than 0.
        let exponentials: f64 = (0..shape).map(|_| -(1.0 - self.random.f64()).ln()).sum();
        mean.mul_f64(exponentials / f64::from(shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 100_000;

    /// A probe, and the settings that are in force.
    struct Driven(Probe, ProbeSettings);

    impl Driven {
        fn draw(&mut self) -> Outcome {
            self.0.draw(&self.1)
        }
    }

    fn probe(change: impl Fn(&mut ProbeSettings)) -> Driven {
        seeded(20_261_122, change)
    }

    fn seeded(random_seed: u64, change: impl Fn(&mut ProbeSettings)) -> Driven {
        let mut settings = ProbeSettings::default();
        change(&mut settings);
        Driven(Probe::new(Some(random_seed)), settings)
    }

    /// Checks mean and variance of many draws: mean and mean²/shape are the gamma's. A sample's
    /// mean strays by its standard error, its variance by about √((2 + 6/shape)/n) of itself; five
    /// of each are allowed.
    fn check_gamma(probe: &mut Driven, mean: f64, shape: f64) {
        let draws: Vec<f64> = (0..DRAWS)
            .map(|_| match probe.draw() {
                Outcome::Succeed(latency) | Outcome::Fail(latency) => latency.as_secs_f64(),
            })
            .collect();
        let n = f64::from(DRAWS);
        let sample_mean = draws.iter().sum::<f64>() / n;
        let sample_variance = draws.iter().map(|x| (x - sample_mean).powi(2)).sum::<f64>() / n;
        let variance = mean * mean / shape;
        assert!(
            (sample_mean - mean).abs() < 5.0 * (variance / n).sqrt(),
            "mean {sample_mean}, expected {mean}"
        );
        assert!(
            (sample_variance / variance - 1.0).abs() < 5.0 * ((2.0 + 6.0 / shape) / n).sqrt(),
            "variance {sample_variance}, expected {variance}"
        );
    }

    #[test]
    fn ordinary_latencies_are_gamma_distributed_with_shape_3() {
        let mut probe = probe(|settings| settings.latency = Duration::from_millis(300));
        check_gamma(&mut probe, 0.3, 3.0);
    }

    #[test]
    fn latencies_of_failures_are_gamma_distributed_with_shape_3() {
        let mut probe = probe(|settings| {
            settings.fail_rate = 1.0;
            settings.fail_latency = Duration::from_secs(2);
        });
        check_gamma(&mut probe, 2.0, 3.0);
    }

    #[test]
    fn slow_latencies_are_gamma_distributed_with_shape_30() {
        let mut probe = probe(|settings| {
            settings.slow_rate = 1.0;
            settings.slow_latency = Duration::from_secs(9);
        });
        check_gamma(&mut probe, 9.0, 30.0);
    }

    #[test]
    fn quantiles_are_the_ones_of_the_course() {
        let mut probe = probe(|settings| settings.latency = Duration::from_millis(300));
        let mut draws: Vec<Duration> = (0..DRAWS)
            .map(|_| match probe.draw() {
                Outcome::Succeed(latency) => latency,
                Outcome::Fail(_) => panic!("the fail rate is 0"),
            })
            .collect();
        draws.sort();
        let quantile = |q: usize| draws[draws.len() / 100 * q].as_secs_f64();
        assert!((quantile(50) - 0.267).abs() < 0.005, "{}", quantile(50));
        assert!((quantile(90) - 0.532).abs() < 0.010, "{}", quantile(90));
    }

    /// Checks that a share of the draws strays from its rate by less than five standard errors.
    fn check_rate(share: u32, of: u32, rate: f64) {
        let (share, of) = (f64::from(share), f64::from(of));
        let allowed = 5.0 * (rate * (1.0 - rate) / of).sqrt();
        assert!((share / of - rate).abs() <= allowed, "{share} of {of}");
    }

    #[test]
    fn failures_and_slow_answers_come_at_their_rates() {
        let mut probe = probe(|settings| {
            settings.fail_rate = 0.2;
            settings.slow_rate = 0.3;
        });
        let (mut failed, mut slow) = (0, 0);
        for _ in 0..DRAWS {
            match probe.draw() {
                Outcome::Fail(_) => failed += 1,
                Outcome::Succeed(latency) if latency.is_zero() => {}
                Outcome::Succeed(_) => slow += 1,
            }
        }
        check_rate(failed, DRAWS, 0.2);
        check_rate(slow, DRAWS - failed, 0.3);
    }

    #[test]
    fn rates_of_0_and_1_are_never_and_always() {
        let mut never = probe(|_| {});
        let mut always = probe(|settings| settings.fail_rate = 1.0);
        for _ in 0..1000 {
            assert_eq!(never.draw(), Outcome::Succeed(Duration::ZERO));
            assert_eq!(always.draw(), Outcome::Fail(Duration::ZERO));
        }
    }

    #[test]
    fn what_happens_at_a_rate_of_0_or_takes_no_time_draws_nothing() {
        let failures = |rate| {
            let mut probe = Probe::new(Some(1));
            let settings = ProbeSettings {
                fail_rate: rate,
                ..ProbeSettings::default()
            };
            (0..100)
                .map(|_| probe.draw(&settings) == Outcome::Fail(Duration::ZERO))
                .collect::<Vec<_>>()
        };
        let mut random = Rng::with_seed(1);
        let drawn: Vec<bool> = (0..100).map(|_| random.f64() < 0.5).collect();
        assert_eq!(failures(0.5), drawn);
        assert!(!failures(0.0).contains(&true));
        let mut probe = Probe::new(Some(1));
        probe.draw(&ProbeSettings::default());
        assert_eq!(
            probe.random.f64().to_bits(),
            Rng::with_seed(1).f64().to_bits()
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_outcomes_and_another_seed_others() {
        let outcomes = |seed| -> Vec<Outcome> {
            let mut probe = seeded(seed, |settings| {
                settings.fail_rate = 0.1;
                settings.slow_rate = 0.1;
                settings.latency = Duration::from_millis(300);
            });
            (0..100).map(|_| probe.draw()).collect()
        };
        assert_eq!(outcomes(1), outcomes(1));
        assert_ne!(outcomes(1), outcomes(2));
    }
}
