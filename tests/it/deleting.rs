//! Files of ours at the provider that have had their time.

use std::time::Duration;

use nightshift::domain::batch::ProviderIdentity;

use crate::harness::{good_line, polling, until};
use crate::trouble::bench::Provider;

#[test]
fn a_file_that_the_provider_refuses_to_delete_is_in_no_others_way() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start(folder.path(), "{}", |_| ());
    provider.shut(|call| {
        (call == "DELETE /v1/files/file-input-1").then_some((400, "This file cannot be deleted."))
    });
    let deletions = |number: u64| provider.calls(&format!("DELETE /v1/files/file-input-{number}"));
    let base_url = provider.url.clone();
    polling(&base_url, async |nightshift| {
        for number in [1, 2] {
            nightshift.request(number, "demo", |_| ()).await;
            let mut batch = nightshift.open_batch(number, "demo", 1).await;
            batch.send().await;
            batch.finish(vec![good_line(number, None)], Vec::new()).await;
        }
        let due = || {
            let reader = nightshift.store().reader();
            let due = reader
                .due_deletions(
                    &nightshift.shared.identity,
                    nightshift.now().plus(Duration::from_secs(72 * 3600)),
                    9,
                )
                .unwrap();
            due.into_iter().map(|(_, file)| file.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(due(), ["file-input-1", "file-input-2"]);
        // They are not looked for where they never were.
        let later = nightshift.now().plus(Duration::from_secs(72 * 3600));
        let elsewhere = ProviderIdentity { kind: "openai".to_owned(), ..ProviderIdentity::default() };
        assert_eq!(nightshift.store().reader().due_deletions(&elsewhere, later, 9).unwrap(), []);
        let hours = async |hours: u64| {
            for _ in 0..hours * 30 {
                nightshift.clock.advance(Duration::from_secs(120));
                tokio::task::yield_now().await;
            }
        };
        hours(47).await;
        assert_eq!(deletions(1) + deletions(2), 0);
        hours(2).await;
        until("the second is gone", async || (due() == ["file-input-1"]).then_some(())).await;
        assert_eq!((deletions(1), deletions(2)), (1, 1));
        // Once a day, and gladly.
        provider.open();
        hours(26).await;
        until("the first one, too", async || due().is_empty().then_some(())).await;
        assert_eq!((deletions(1), deletions(2)), (2, 1));
    });
}
