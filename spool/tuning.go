package spool

import (
	"os"
	"time"
)

// tuning is what tests change: times that would be too long to wait for, and the one call that the promise hangs on.
type tuning struct {
	sync          func(f *os.File) error // brings a log to stable storage
	patience      time.Duration          // with a commit or a close: a disk that does not answer for so long is no place to promise from
	tick          time.Duration          // of the keeper
	sealAge       time.Duration          // so that a quiet spool gives its disk space back too
	idleClose     time.Duration          // an older generation that nobody used for so long is closed
	evacuateIdle  time.Duration          // what was used since is not moved: it may be being drained
	evacuateEvery time.Duration
}

func defaultTuning() tuning {
	return tuning{
		sync:          datasync,
		patience:      time.Minute,
		tick:          time.Second,
		sealAge:       time.Hour,
		idleClose:     30 * time.Second,
		evacuateIdle:  5 * time.Second,
		evacuateEvery: 10 * time.Second,
	}
}
