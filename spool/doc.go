// Package spool keeps messages on stable storage and knows what is due.
//
// The guarantee: once Put returned nil, the message is there after any crash of the process, the system or the power,
// until each of its recipients was settled as delivered, returned or dropped. A message may reach a primary twice,
// where a settlement could not be stored any more, and never zero times.
//
// # States of a message
//
//	     content  record  progress  meaning                       left by a crash at…
//	S1      -       -        -      unknown
//	S2      +       -        -      being received, no 250 said   its content          → a body file is swept by Open
//	S3      +       +        ±      queued: 250 may be said       any time after       → tried when due; leases are forgotten
//	S4      +       +        +      held                                               → stays held
//	S5      ±       -        ±      ended                         its settlement       → what is left goes with its generation
//	S6      !       +        +      damaged: held, with an alert                       → stays held, is never removed
//
// "record" is the commit record, written in one commit with a small body, after a large one was synced. It makes the
// message exist. "progress" is written only once it differs from the beginning.
//
// # States of a generation
//
//	active    takes new mail; exactly one, or none while none can be made. Its journal has all of it
//	full      a new one is active; it is closed as soon as nobody uses it
//	closed    its tables have the records, its journal the content; opened again when a delivery needs it
//	left      its commit failed or was doubtful: read, never written to; what lives is copied to the active one
//	drained   nothing in it lives: renamed, then removed
//	damaged   read in part, or not at all: never removed, which is written down; never stops the others
//
// # Goroutines
//
// Each open database has one that writes (database.run): it groups what waits into one transaction and one sync, which
// for a journal has a goroutine of its own. The keeper (Store.keep) closes, evacuates and removes generations, the
// preparer (Store.prepare) makes the next one in advance. Each Watch has one that passes hints on. Close ends all of
// them. Alone a close that the disk does not answer is left to itself after a minute (generation.endDatabase).
//
// # Locks
//
// In this order: queue.life (read), the message's lock, Store.rolling, generation.mu, Store.mu, queue.mu, space.mu. No
// I/O is done under queue.mu.
package spool
