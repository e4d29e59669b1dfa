//! How scenarios went, as JUnit XML: a suite for each scenario, a case for each step.

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::runner::Report;

pub fn write(reports: &[Report]) -> Result<String, quick_junit::SerializeError> {
    let mut junit = quick_junit::Report::new("cke sim");
    for report in reports {
        let mut suite = TestSuite::new(report.name.clone());
        for step in &report.steps {
            let status = match &step.outcome {
                Some(Ok(())) => TestCaseStatus::success(),
                Some(Err(reason)) => {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_message(reason.lines().next().unwrap_or_default());
                    status.set_description(reason.clone());
                    status
                }
                None => TestCaseStatus::skipped(),
            };
            let mut case = TestCase::new(step.title.clone(), status);
            case.set_time(step.took);
            suite.add_test_case(case);
        }
        junit.add_test_suite(suite);
    }
    junit.to_string()
}
