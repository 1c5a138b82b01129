package spool

import (
	"context"
	"errors"
	"io"
	"time"

	"understudy/internal/mta"
)

// What a caller may act on. Every other error is a fault of the engine.
var (
	ErrNotFound  = errors.New("spool: not found")
	ErrLeaseLost = errors.New("spool: lease lost")                // superseded, lapsed, or the delivery is gone
	ErrUnknown   = errors.New("spool: outcome unknown")           // may or may not be stored: never say 250; a repeat with the same ID is harmless
	ErrDamaged   = errors.New("spool: stored message damaged")    // what is read back is not what was stored
	ErrClosed    = errors.New("spool: closed")                    // Close was called
	ErrInUse     = errors.New("spool: in use by another process") // the folder has one owner
)

// Spool is the contract that each engine meets; package spooltest holds engines to it. It assumes no single process.
//
// The unit of a claim is a delivery: one message and one destination. A message with recipients at two destinations is
// two deliveries of one content. A delivery is due while any of its recipients is Deferred; when none is, but some are
// Quarantined, it is held until an operator moves it; when all have ended it is gone, and the last one takes the
// content with it.
type Spool interface {
	// Put stores one message: nil means that content, envelope and deliveries are on stable storage, in one step, and
	// nothing else may be answered 250. An error of body or ctx before that step leaves nothing behind; once the step
	// began, ctx can't undo it. A message that is there already is not stored twice. What its verdict quarantines is
	// held in the same step, with the verdict's refusal as the reason.
	Put(ctx context.Context, env *mta.Envelope, body io.Reader) error

	// Room returns nil if a message of size octets for dest could be taken now; a *mta.Reply (452 4.3.1) in the
	// chain says why not. It is asked before content is read, and promises nothing.
	Room(ctx context.Context, dest string, size int64) error

	// Claim leases due deliveries, in the order of due and ID. A claimed delivery is no one else's until it is
	// settled, released, or its lease lapses. Where more have expired than are asked for, those that expired first at
	// their destination come first.
	Claim(ctx context.Context, r mta.ClaimRequest) ([]mta.Lease, error)

	// Extend moves the end of a lease to d from now.
	Extend(ctx context.Context, r mta.LeaseRef, d time.Duration) (time.Time, error)

	// Settle ends leases: for each settlement the results, the next try and the reports are stored in one step, or
	// none of them. It gives one error per settlement. A lease that was lost changes nothing.
	Settle(ctx context.Context, s ...mta.Settlement) []error

	// Release gives leased deliveries back, due at notBefore or when they were due, whichever is later. No attempt is
	// counted. It need not be stored: the worst that comes of its loss is a try too early.
	Release(ctx context.Context, notBefore time.Time, r ...mta.LeaseRef) error

	// Body opens the content. Its length and checksum are verified: what differs from what was stored ends in
	// ErrDamaged before io.EOF, and the message is held with an alert.
	Body(ctx context.Context, id mta.ID) (io.ReadCloser, error)

	// DueDests lists the destinations that Claim would find something for, sorted.
	DueDests(ctx context.Context, ignoreDue bool) ([]string, error)

	// NextDue is when the next delivery becomes due, or a lease lapses; zero if nothing waits.
	NextDue(ctx context.Context) (time.Time, error)

	// Watch sends the names of destinations that have something new to do. Hints are coalesced and may be lost: who
	// watches polls too. The channel is closed when ctx is done or the spool is closed.
	Watch(ctx context.Context) (<-chan string, error)

	// Get returns all deliveries of a message, or ErrNotFound.
	Get(ctx context.Context, id mta.ID) ([]Item, error)

	// List returns deliveries in the order of ID and destination, and the cursor of the next page, empty at the end.
	List(ctx context.Context, q Query) (items []Item, next string, err error)

	// Apply does op to deliveries and returns how many it changed; keys that are not there are passed over. due is
	// the new time for Reschedule and Unhold; zero is now.
	Apply(ctx context.Context, op Op, due time.Time, k ...Key) (int, error)

	// ApplyWhere does op to all that q matches (After and Limit aside), in steps; progress, if not nil, is told of each.
	ApplyWhere(ctx context.Context, q Query, op Op, due time.Time, progress func(done int)) (int, error)

	// Stats returns one row per destination, sorted.
	Stats(ctx context.Context) ([]DestStats, error)

	// Usage says how full the spool is.
	Usage(ctx context.Context) (Usage, error)

	// Ready returns nil if a Put now could keep its promise.
	Ready(ctx context.Context) error

	// Close lets steps that began end, and gives the storage free. Later calls return ErrClosed.
	Close() error
}

// Query selects deliveries. The zero Query is all of them.
type Query struct {
	Dest   string    // exactly
	From   string    // part of the reverse-path, any case
	Rcpt   string    // part of a recipient's address, any case
	Before time.Time // received before
	Held   *bool     // only held ones, or only others
	After  string    // the cursor that List returned
	Limit  int       // at most so many; 0 is DefaultLimit, more than MaxLimit is MaxLimit
}

// Page sizes of List: a page is made in memory.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)

// Item is one delivery, for people to look at.
type Item struct {
	ID       mta.ID           `json:"id"`
	Dest     string           `json:"dest"`
	Due      time.Time        `json:"due,omitzero"` // zero: since receipt
	Expires  time.Time        `json:"expires,omitzero"`
	Held     bool             `json:"held"`
	Reason   mta.Reply        `json:"reason,omitzero"` // why it is held, or the last that a primary said
	Leased   bool             `json:"leased"`
	Attempts int              `json:"attempts"`
	Size     int64            `json:"size"`
	Envelope *mta.Envelope    `json:"envelope"`
	Rcpts    []mta.RcptStatus `json:"rcpts"` // only this destination's
}

// Key names a delivery; without Dest, every delivery of the message.
type Key struct {
	ID   mta.ID `json:"id"`
	Dest string `json:"dest,omitempty"`
}

// Op is what an operator does to deliveries.
type Op uint8

const (
	Hold       Op = iota + 1 // keep it; a lease that is out ends as it ends
	Unhold                   // give it back to the queue: quarantined recipients wait for a try again
	Reschedule               // try at another time
	Delete                   // drop what has not ended; a lease that is out is lost
)

var opNames = [...]string{Hold: "hold", Unhold: "unhold", Reschedule: "reschedule", Delete: "delete"}

func (o Op) String() string {
	if int(o) < len(opNames) && opNames[o] != "" {
		return opNames[o]
	}
	return "unknown operation"
}

// DestStats is how much waits for one destination.
type DestStats struct {
	Dest     string    `json:"dest"`
	Messages int64     `json:"messages"`
	Bytes    int64     `json:"bytes"`
	Leased   int64     `json:"leased"`
	Held     int64     `json:"held"`
	Oldest   time.Time `json:"oldest,omitzero"`   // receipt of the oldest message
	NextDue  time.Time `json:"next_due,omitzero"` // zero: nothing will become due by itself
}

// Usage is how full the spool is. A maximum of 0 is no limit.
type Usage struct {
	Messages  int64     `json:"messages"`
	Bytes     int64     `json:"bytes"` // content of the messages
	MaxBytes  int64     `json:"max_bytes"`
	DiskUsed  int64     `json:"disk_used"`  // what the folder takes on disk
	DiskFree  int64     `json:"disk_free"`  // what the file system has left
	Reserve   int64     `json:"reserve"`    // below this much free, new mail is refused
	FilesOpen int64     `json:"files_open"` // descriptors of this process
	FilesMax  int64     `json:"files_max"`
	AsOf      time.Time `json:"as_of"`
}
