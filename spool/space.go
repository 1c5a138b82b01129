package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// space watches the file system. Badger writes through mappings, where a full disk is a signal that ends the process;
// so whoever is about to have it take room asks need first, and the ballast is given away when there is none left.
type space struct {
	dir     string
	reserve int64
	percent float64
	ballast int64
	log     *slog.Logger

	seen atomic.Pointer[seenDisk] // what room saw last

	mu      sync.Mutex // guards what follows, and the ballast file
	gone    bool       // the ballast was given away
	pledged int64      // promised by need, maybe not taken yet
}

const ballastFile = "ballast"

var errNoSpace = errors.New("disk is full")

// disk is what statfs says.
type disk struct{ free, total, inodes int64 }

func (s *space) disk() (disk, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return disk{}, fmt.Errorf("statfs %s: %w", s.dir, err)
	}
	d := disk{free: int64(fs.Bavail) * int64(fs.Bsize), total: int64(fs.Blocks) * int64(fs.Bsize), inodes: int64(fs.Ffree)}
	if fs.Files == 0 {
		d.inodes = 1 << 40 // this file system has no fixed number of inodes
	}
	return d, nil
}

// kept is how much is never given to new mail.
func (s *space) kept(d disk) int64 {
	return max(s.reserve, int64(float64(d.total)*s.percent/100))
}

// seenDisk is what statfs said a moment ago.
type seenDisk struct {
	disk
	at time.Time
}

// seenFor is how long room believes what it saw: who asks for every message would ask for little else. In that time
// the disk can't take in more than a small part of the least reserve.
const seenFor = 2 * time.Millisecond

func (s *space) glance() (disk, error) {
	now := time.Now()
	if seen := s.seen.Load(); seen != nil && now.Sub(seen.at) < seenFor {
		return seen.disk, nil
	}
	d, err := s.disk()
	if err == nil {
		s.seen.Store(&seenDisk{d, now})
	}
	return d, err
}

// minInodes are kept free for the files of generations.
const minInodes = 1000

// room reports whether new mail of size octets leaves the reserve alone. The place of a ballast that was given away is
// for deliveries, and for the next ballast: new mail that fed on it would leave nothing to drain or to restart with.
func (s *space) room(size int64) error {
	d, err := s.glance()
	if err != nil {
		return err
	}
	kept := s.kept(d)
	s.mu.Lock()
	if s.gone {
		kept += s.ballast
	}
	s.mu.Unlock()
	if d.free-size < kept {
		return full("%d octets free on disk, %d are kept in reserve", d.free, kept)
	}
	if d.inodes < minInodes {
		return full("%d inodes free on disk", d.inodes)
	}
	return nil
}

// want makes sure of n octets. Until done is called they are promised to nobody else.
func (s *space) want(n int64) (done func(), err error) { return s.pledge(n, false) }

// need is want for what must go on even when no new mail is taken: the ballast is given away for it.
func (s *space) need(n int64) (done func(), err error) { return s.pledge(n, true) }

func (s *space) pledge(n int64, urgent bool) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.disk()
	if err != nil {
		return nil, err
	}
	if urgent && d.free < s.pledged+n+spareSpace {
		s.drop()
		if d, err = s.disk(); err != nil {
			return nil, err
		}
	}
	kept := s.pledged
	if s.gone && !urgent { // its place is for deliveries
		kept += s.ballast
	}
	if d.free < kept+n {
		return nil, fmt.Errorf("%w: %d octets free, %d needed", errNoSpace, d.free-kept, n)
	}
	s.pledged += n
	return func() {
		s.mu.Lock()
		s.pledged -= n
		s.mu.Unlock()
	}, nil
}

// spareSpace is left for others who write to the same disk between question and use.
const spareSpace = 4 << 20

// drop gives the ballast away. It needs s.mu.
func (s *space) drop() {
	if s.gone {
		return
	}
	s.gone = true
	err := os.Remove(filepath.Join(s.dir, ballastFile))
	if err == nil {
		s.log.Error("disk is full, the ballast was given away", slog.String("dir", s.dir))
	} else if !errors.Is(err, os.ErrNotExist) {
		s.log.Error("ballast can't be given away", slog.String("dir", s.dir), slog.Any("err", err))
	}
}

// restore lays the ballast in again once there is plenty of room.
func (s *space) restore() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.dir, ballastFile)
	have := int64(0)
	if fi, err := os.Stat(path); err == nil {
		have = fi.Size()
	}
	if have == s.ballast {
		s.gone = false
		return nil
	}
	d, err := s.disk()
	if err != nil {
		return err
	}
	if s.ballast == 0 || d.free+have < s.kept(d)+2*s.ballast {
		if s.ballast == 0 && have > 0 {
			return os.Remove(path)
		}
		return nil
	}
	if err := makeBallast(path, s.ballast); err != nil {
		os.Remove(path)
		return fmt.Errorf("ballast: %w", err)
	}
	s.gone = false
	return nil
}

// makeBallast takes real blocks, with or without the file system's help.
func makeBallast(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = preallocate(f, size)
	if errors.Is(err, errNoPrealloc) {
		err = nil
		zeros := make([]byte, 1<<20)
		for left := size; left > 0 && err == nil; left -= int64(len(zeros)) {
			_, err = f.Write(zeros[:min(left, int64(len(zeros)))])
		}
	}
	if err != nil {
		return err
	}
	return f.Sync()
}

// minFiles are the descriptors kept free from new mail, openFiles those that must be free to open a database: it takes
// about ten.
const (
	minFiles  = 64
	openFiles = 24
)

var errNoFiles = errors.New("few file descriptors are left")

// passing reports a fault of the moment, which says nothing of what is stored: no room, no memory, no descriptors.
func passing(err error) bool {
	for _, one := range []error{errNoSpace, errNoFiles, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// fileWatch tells whether few descriptors are left, as it was a moment ago.
type fileWatch struct {
	asked atomic.Int64 // when, in nanoseconds
	few   atomic.Bool
}

func (w *fileWatch) crowded() bool {
	const every = time.Second
	now, last := time.Now().UnixNano(), w.asked.Load()
	if now-last > int64(every) && w.asked.CompareAndSwap(last, now) {
		open, most := files()
		w.few.Store(most-open < minFiles)
	}
	return w.few.Load()
}

// files counts the descriptors of this process and its limit.
func files() (open, most int64) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, 1 << 40
	}
	f, err := os.Open("/proc/self/fd")
	if err != nil {
		if errors.Is(err, unix.EMFILE) {
			return int64(lim.Cur), int64(lim.Cur)
		}
		return 0, int64(lim.Cur)
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	return int64(len(names)) - 1, int64(lim.Cur)
}
