// Package parity measures how far our own verdicts agree with the primary's. It promises that each pair of both that it
// is told of is counted once, under its domain and day, and that what it holds is bounded, whatever senders and primaries
// say.
//
// A Tally counts pairs (mta.Pair) in records: one for each day (UTC), domain and kind (shadow, receipt, hindsight), with the
// full matrix of our five actions and the primary's four fates, and the most frequent reasons of each disagreement with
// some message ids (record.go). The records of today are in memory and written in batches (keep.go); of the days before,
// back to what the alarm looks at, the matrices alone are. A crash loses what was counted in the last flushEvery.
//
// Run owns the only goroutine: it writes, forgets yesterday, and raises and ends alarms (alarm.go).
package parity
