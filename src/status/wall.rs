//! Wall-clock times as users see them.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A wall-clock time in milliseconds since 1970, printed as `2026-01-26T03:00:00.000Z`. For people only: no boundary
/// inside snapsync is a wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct WallTime {
    ms: i64,
}

impl WallTime {
    /// The time `ms` milliseconds after 1970-01-01T00:00:00Z, as a BSON date holds it. What lies outside the years
    /// -9999 to 9999 becomes the nearest time that can be printed.
    #[must_use]
    pub fn from_ms(ms: i64) -> Self {
        Self { ms: ms.clamp(Timestamp::MIN.as_second() * 1000, Timestamp::MAX.as_second() * 1000) }
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn as_ms(self) -> i64 {
        self.ms
    }

    /// What this machine's clock says.
    #[must_use]
    pub fn now() -> Self {
        Self::from_ms(Timestamp::now().as_millisecond())
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timestamp = Timestamp::from_millisecond(self.ms).map_err(|_| fmt::Error)?;
        write!(f, "{timestamp:.3}")
    }
}

/// A text that is not a time with a zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time; write it as 2026-01-26T03:00:00.000Z")]
pub struct ParseWallTimeError {
    text: String,
}

impl FromStr for WallTime {
    type Err = ParseWallTimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let timestamp: Timestamp =
            text.parse().map_err(|_| ParseWallTimeError { text: text.to_owned() })?;
        Ok(Self::from_ms(timestamp.as_millisecond()))
    }
}

impl From<WallTime> for String {
    fn from(time: WallTime) -> Self {
        time.to_string()
    }
}

impl TryFrom<String> for WallTime {
    type Error = ParseWallTimeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_milliseconds_and_z() {
        assert_eq!(WallTime::from_ms(1_769_396_400_000).to_string(), "2026-01-26T03:00:00.000Z");
        assert_eq!(WallTime::from_ms(-1).to_string(), "1969-12-31T23:59:59.999Z");
    }

    #[test]
    fn refuses_a_time_without_a_zone() {
        assert!("2026-01-26T03:00:00.000".parse::<WallTime>().is_err());
    }

    proptest! {
        #[test]
        fn prints_and_parses_back(ms: i64) {
            let time = WallTime::from_ms(ms);
            prop_assert_eq!(time.to_string().parse::<WallTime>(), Ok(time));
        }
    }
}
