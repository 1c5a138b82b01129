// Package filter asks the content filters that the operator runs what they think of a message: rspamd, SpamAssassin's
// spamd, ClamAV's clamd, and whatever speaks the milter protocol. A Set holds them; Judge gives their findings.
//
// A filter never changes a message: what it asks for beyond an answer (fields, another subject, another recipient) is
// not done, because the primary's own filter will do it. A filter never loses one either: where it would discard, the
// message is quarantined. A filter that does not answer is a finding of its own, "filter:NAME-down", which defers the
// message or, where the operator prefers that, marks it; without a virus scanner's answer it is always deferred.
//
// Each filter is bounded by a time limit, a number of connections and a size, and guarded by a circuit: after a few
// failures in a row it is not asked for a while, then by one message alone, whose answer decides.
//
//	up ──3 failures──► down ──10 s──► probing ──answer──► up
//	                    ▲───────failure───┘
//
// Everything that a filter says is one bounded line of printable ASCII by the time it stands in a finding.
//
// Judge starts a goroutine for each filter (one for all milters, which are asked in their order) and awaits them all.
// Nothing else runs here.
package filter
