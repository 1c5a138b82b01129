// Package policy decides whether mail is taken. It promises that nothing is taken for a domain that is not
// configured, that postmaster is always reached, and that a recipient is refused for good only on the word of a list
// that was read completely.
//
// What it knows is one immutable state behind an atomic pointer: Load and Reload build the next state aside and swap it
// in, so that no decision waits for a list and each sees one state whole. The package starts no goroutine.
package policy
