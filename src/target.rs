//! The targets: what clients can change through /faults.

/// What clients can change through /faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The requests to a route.
    Route(RouteTarget),
    /// The whole process.
    Process,
}

/// The routes that can be told to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the routes")]
pub enum RouteTarget {
    Probe,
    Metrics,
    Healthz,
    Readyz,
}

impl RouteTarget {
    /// All route targets.
    pub const ALL: [Self; 4] = [Self::Probe, Self::Metrics, Self::Healthz, Self::Readyz];
}

impl Target {
    /// The number of targets.
    pub const COUNT: usize = RouteTarget::ALL.len() + 1;

    /// Returns all targets, probe first.
    pub fn all() -> impl Iterator<Item = Self> {
        let routes = RouteTarget::ALL.into_iter().map(Self::Route);
        routes.chain([Self::Process])
    }

    /// Returns the target with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::all().find(|target| target.name() == name)
    }

    /// Returns the name, which is used in the path after /faults/ and as the label of a metric.
    pub fn name(self) -> &'static str {
        match self {
            Self::Route(RouteTarget::Probe) => "probe",
            Self::Route(RouteTarget::Metrics) => "metrics",
            Self::Route(RouteTarget::Healthz) => "healthz",
            Self::Route(RouteTarget::Readyz) => "readyz",
            Self::Process => "process",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_name() {
        assert_eq!(Target::all().count(), Target::COUNT);
        for target in Target::all() {
            assert_eq!(Target::parse(target.name()), Some(target));
        }
        for name in ["", "Probe", "faults", "/probe"] {
            assert_eq!(Target::parse(name), None);
        }
    }
}
