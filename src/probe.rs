//! Decides whether a request fails and how long it takes: at random, with the settings of /probe, or with
//! those that a client has set for /metrics, /healthz or /readyz.

use std::time::Duration;

use fastrand::Rng;

use crate::config::ProbeSettings;

/// The shape of the distribution of ordinary latencies and those of failures: a wide hump with a tail.
const ORDINARY_SHAPE: u32 = 3;
/// The shape of the distribution of slow latencies: a narrow hump around the mean.
const SLOW_SHAPE: u32 = 30;

/// Draws what happens to each request.
pub struct Probe {
    random: Rng,
}

/// The result of a draw: what happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// The request fails after this delay.
    Fail(Duration),
    /// The request succeeds after this delay.
    Succeed(Duration),
}

impl Probe {
    /// Creates a probe. With the same seed and the same settings, its draws are always the same.
    /// Without a seed, they differ in each run.
    pub fn new(random_seed: Option<u64>) -> Self {
        Self {
            random: random_seed.map_or_else(Rng::new, Rng::with_seed),
        }
    }

    /// Draws what happens to the next request, with these settings in force.
    pub fn draw(&mut self, settings: &ProbeSettings) -> Draw {
        if self.happens(settings.fail_rate) {
            Draw::Fail(self.gamma(ORDINARY_SHAPE, settings.fail_latency))
        } else if self.happens(settings.slow_rate) {
            Draw::Succeed(self.gamma(SLOW_SHAPE, settings.slow_latency))
        } else {
            Draw::Succeed(self.gamma(ORDINARY_SHAPE, settings.latency))
        }
    }

    /// Returns true with this probability. For 0, the default, it draws no random number, which saves
    /// time.
    fn happens(&mut self, rate: f64) -> bool {
        rate > 0.0 && self.random.f64() < rate
    }

    /// Draws from a gamma distribution whose shape is a whole number: the sum of that many
    /// exponentials.
    fn gamma(&mut self, shape: u32, mean: Duration) -> Duration {
        if mean.is_zero() {
            return Duration::ZERO;
        }
        // `f64` is at least 0 and less than 1, so the argument of the logarithm is more than 0.
        let exponentials: f64 = (0..shape).map(|_| -(1.0 - self.random.f64()).ln()).sum();
        mean.mul_f64(exponentials / f64::from(shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 100_000;

    /// A probe, and the settings in force.
    struct Driven(Probe, ProbeSettings);

    impl Driven {
        fn draw(&mut self) -> Draw {
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

    /// Checks the mean and the variance of many draws. Those of the distribution are `mean` and
    /// mean²/shape. The standard error of the sample's mean is √(variance/n), and the relative standard
    /// error of its variance is about √((2 + 6/shape)/n). Five standard errors are allowed.
    fn check_gamma(probe: &mut Driven, mean: f64, shape: f64) {
        let draws: Vec<f64> = (0..DRAWS)
            .map(|_| match probe.draw() {
                Draw::Succeed(latency) | Draw::Fail(latency) => latency.as_secs_f64(),
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
    fn the_median_and_the_90th_percentile_are_those_of_the_course() {
        let mut probe = probe(|settings| settings.latency = Duration::from_millis(300));
        let mut draws: Vec<Duration> = (0..DRAWS)
            .map(|_| match probe.draw() {
                Draw::Succeed(latency) => latency,
                Draw::Fail(_) => panic!("the fail rate is 0"),
            })
            .collect();
        draws.sort();
        let quantile = |q: usize| draws[draws.len() / 100 * q].as_secs_f64();
        assert!((quantile(50) - 0.267).abs() < 0.005, "{}", quantile(50));
        assert!((quantile(90) - 0.532).abs() < 0.010, "{}", quantile(90));
    }

    /// Checks that a fraction differs from its rate by at most five standard errors.
    fn check_rate(count: u32, total: u32, rate: f64) {
        let (count, total) = (f64::from(count), f64::from(total));
        let allowed = 5.0 * (rate * (1.0 - rate) / total).sqrt();
        assert!(
            (count / total - rate).abs() <= allowed,
            "{count} of {total}"
        );
    }

    #[test]
    fn failures_and_slow_responses_occur_at_their_rates() {
        let mut probe = probe(|settings| {
            settings.fail_rate = 0.2;
            settings.slow_rate = 0.3;
        });
        let (mut failed, mut slow) = (0, 0);
        for _ in 0..DRAWS {
            match probe.draw() {
                Draw::Fail(_) => failed += 1,
                Draw::Succeed(latency) if latency.is_zero() => {}
                Draw::Succeed(_) => slow += 1,
            }
        }
        check_rate(failed, DRAWS, 0.2);
        check_rate(slow, DRAWS - failed, 0.3);
    }

    #[test]
    fn a_rate_of_0_means_never_and_a_rate_of_1_means_always() {
        let mut never = probe(|_| {});
        let mut always = probe(|settings| settings.fail_rate = 1.0);
        for _ in 0..1000 {
            assert_eq!(never.draw(), Draw::Succeed(Duration::ZERO));
            assert_eq!(always.draw(), Draw::Fail(Duration::ZERO));
        }
    }

    #[test]
    fn a_rate_of_0_or_a_latency_of_0_draws_no_random_number() {
        let failures = |rate| {
            let mut probe = Probe::new(Some(1));
            let settings = ProbeSettings {
                fail_rate: rate,
                ..ProbeSettings::default()
            };
            (0..100)
                .map(|_| probe.draw(&settings) == Draw::Fail(Duration::ZERO))
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
    fn the_same_seed_gives_the_same_draws_and_another_seed_gives_others() {
        let draws = |seed| -> Vec<Draw> {
            let mut probe = seeded(seed, |settings| {
                settings.fail_rate = 0.1;
                settings.slow_rate = 0.1;
                settings.latency = Duration::from_millis(300);
            });
            (0..100).map(|_| probe.draw()).collect()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        assert_ne!(draws(1), draws(1 + (1 << 32)), "all 64 bits count");
        assert_ne!(draws(1), draws(1 + (1 << 63)));
    }
}
