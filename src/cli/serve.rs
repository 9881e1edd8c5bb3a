//! `nightshift [serve]`

use super::{CliError, start_log};
use crate::app;
use crate::config::Settings;

pub fn run(settings: Settings) -> Result<(), CliError> {
    start_log(settings.log);
    Ok(app::run(settings)?)
}
