//! How fast a clock runs, if at all.

/// How the clock runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TimeScale {
    /// So many simulated seconds a real second; 1.0 is real time.
    Factor(f64),
    /// Only [`Clock::advance`] moves it.
    Manual,
}

impl std::str::FromStr for TimeScale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "manual" {
            return Ok(TimeScale::Manual);
        }
        match text.parse::<f64>() {
            Ok(factor) if factor.is_finite() && (0.001..=100_000.0).contains(&factor) => {
                Ok(TimeScale::Factor(factor))
            }
            _ => Err(format!(
                "`{text}` is neither `manual` nor a factor from 0.001 to 100000"
            )),
        }
    }
}

impl std::fmt::Display for TimeScale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TimeScale::Factor(factor) => write!(f, "{factor}"),
            TimeScale::Manual => f.write_str("manual"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_scale_is_a_factor_or_manual() {
        let check = |text: &str, expect: Option<TimeScale>| {
            assert_eq!(text.parse::<TimeScale>().ok(), expect, "{text}");
        };
        check("manual", Some(TimeScale::Manual));
        check("20", Some(TimeScale::Factor(20.0)));
        check("0.5", Some(TimeScale::Factor(0.5)));
        check("0", None);
        check("-1", None);
        check("inf", None);
        check("NaN", None);
        check("", None);
    }
}
