package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/prometheus/client_golang/prometheus"

	"understudy/internal/mta"
)

// Store is the engine for one machine: generations of Badger databases in one folder.
type Store struct {
	*queue
	dir   string
	flock *os.File // the folder is ours while it is open
	keys  *keyring
	space *space
	tune  tuning

	mu     sync.Mutex // guards what follows, up to rolling
	gens   map[uint32]*generation
	next   uint32      // number of the next generation
	active *generation // nil while none could be made
	spare  *generation // made in advance, or nil; not in gens until it is active
	// overrides are the progress of messages whose own generation can't be written to any more.
	overrides map[loc][]byte

	rolling  sync.Mutex    // held while a new generation is made
	spareAt  time.Time     // no spare is made before; guarded by rolling
	failed   error         // why the last one could not be made; guarded by mu
	fault    Fault         // the last commit that failed; guarded by mu
	retryAt  time.Time     // not before; guarded by mu
	patience time.Duration // until the next retry after that; guarded by mu

	found   *findings     // of recover, until begin
	broken  []string      // folders of generations that could not be opened; set by recover
	amiss   []Damage      // what was promised may be missing from the end of a log; set by recover
	crowded atomic.Bool   // few descriptors are left
	cramped atomic.Bool   // there was no room to open a generation
	work    chan struct{} // wakes the keeper; capacity 1
	low     chan struct{} // wakes the preparer; capacity 1
	stop    context.CancelFunc
	kept    sync.WaitGroup // the keeper and the preparer
}

// A generation that can't be made is tried again after this long, and ever more rarely: each try costs something.
const (
	rollRetry    = time.Second
	maxRollRetry = time.Minute
)

// Open opens the spool in cfg.Dir, creates it if it is not there, and recovers what a crash left: when it returns,
// every message that got a 250 is in the index again.
func Open(ctx context.Context, cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	s, err := open(ctx, cfg, log, newMetrics(reg), defaultTuning())
	if err != nil {
		return nil, fmt.Errorf("spool: open %s: %w", cfg.Dir, err)
	}
	s.stats.watchStore(reg, s)
	return s, nil
}

func open(ctx context.Context, cfg Config, log *slog.Logger, stats *metrics, tune tuning) (*Store, error) {
	keys, err := loadKeys(cfg)
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir: cfg.Dir, keys: keys, tune: tune, gens: make(map[uint32]*generation), next: 1,
		overrides: make(map[loc][]byte), work: make(chan struct{}, 1), low: make(chan struct{}, 1),
		space: &space{dir: cfg.Dir, reserve: int64(cfg.Reserve), percent: cfg.ReservePercent, ballast: int64(cfg.Ballast), log: log},
	}
	s.queue = newQueue(cfg, log, stats, s)
	if err := s.prepareFolder(); err != nil {
		return nil, err
	}
	if err := s.recover(ctx); err != nil {
		s.flock.Close()
		return nil, err
	}
	if err := s.space.restore(); err != nil {
		log.Warn("no ballast", slog.Any("err", err))
	}
	s.begin()
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.kept.Go(func() { s.keep(keep) })
	s.kept.Go(func() { s.prepare(keep) })
	return s, nil
}

// begin makes the spool fit for new mail and ends what a crash left half done.
func (s *Store) begin() {
	if _, err := s.roll(nil); err != nil {
		// Deliveries can go on; Ready says why new mail is not taken, and the next Put tries again.
		s.log.Error("no generation for new mail", slog.Any("err", err))
	}
	s.persist(s.found.amends)
	for _, c := range s.found.amends {
		if c.err == nil {
			continue
		}
		s.log.Error("recovered state not stored", slog.String("id", c.id.String()), slog.Any("err", c.err))
		if g, ok := s.generation(c.override); ok {
			g.pin(c.at.gen) // what it says is not said anywhere else
		}
	}
	s.found = nil
}

// Folders and files of the spool beside its generations.
const (
	lockFile  = "lock"
	bodiesDir = "bodies" // content too large for the database
	asideDir  = "aside"  // copies of logs from before a recovery
)

// prepareFolder makes the folder ours alone.
func (s *Store) prepareFolder() error {
	for _, dir := range []string{s.dir, filepath.Join(s.dir, bodiesDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	lock, err := lockFolder(s.dir)
	if err != nil {
		return err
	}
	s.flock = lock
	return syncDir(s.dir)
}

// put implements backing.
func (s *Store) put(ctx context.Context, env *mta.Envelope, p *progress, body io.Reader) error {
	err := s.receive(ctx, &message{env: env}, p, body)
	result := "stored"
	if err != nil {
		result = "failed"
	}
	s.stats.puts.WithLabelValues(result).Inc()
	return err
}

// receive reads the content, which takes as long as the sender likes, and only then begins the step.
func (s *Store) receive(ctx context.Context, m *message, p *progress, body io.Reader) error {
	if err := s.space.room(0); err != nil {
		return err
	}
	return s.receiveInto(ctx, m, p, readerCtx{ctx, body}, &smallBuffers)
}

func (s *Store) receiveInto(ctx context.Context, m *message, p *progress, body io.Reader, pool *sync.Pool) error {
	buf := pool.Get().(*[]byte)
	n, err := fill(body, *buf)
	switch {
	case err == io.EOF:
		m.size, m.sum = int64(n), checksum((*buf)[:n])
		err = s.commit(ctx, m, p, (*buf)[:n])
	case err != nil:
		err = fmt.Errorf("read content: %w", err)
	case pool == &smallBuffers:
		err = s.receiveInto(ctx, m, p, io.MultiReader(bytes.NewReader(*buf), body), &buffers)
	default: // more than the database wants
		err = s.receiveFile(ctx, m, p, io.MultiReader(bytes.NewReader(*buf), body))
	}
	if !errors.Is(err, ErrUnknown) { // unknown: a commit may still be reading it
		pool.Put(buf)
	}
	return err
}

// Buffers hold content that goes into the database, and one octet more to know that it ends. Most mail is small.
var (
	buffers      = sync.Pool{New: func() any { b := make([]byte, inlineMax+1); return &b }}
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, 16<<10+1); return &b }}
)

// receiveFile takes content that is larger than the database wants.
func (s *Store) receiveFile(ctx context.Context, m *message, p *progress, body io.Reader) error {
	f, err := s.createBody(m.env.ID)
	if err != nil {
		return err
	}
	err = f.fill(body, s.space)
	if err == nil {
		err = f.commit()
	}
	if err == nil {
		m.at, m.size, m.sum, m.file, m.seal = 0, f.size, f.sum.Sum64(), f.num, s.keys.key != nil
		err = s.commit(ctx, m, p, nil)
	}
	if err != nil && !errors.Is(err, ErrUnknown) { // unknown: the record may be there, so the content stays
		f.remove()
	}
	return err
}

// commit stores the record, with the progress if there is some, and the content if it has no file. Once it began the
// client's hang-up changes nothing.
func (s *Store) commit(ctx context.Context, m *message, p *progress, content []byte) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	if err := s.admit(m); err != nil {
		return err
	}
	start := time.Now()
	at, err := s.add(func(seq uint32) []entry {
		entries := []entry{{messageKey(seq), m.encode(), content}}
		if p != nil {
			entries = append(entries, entry{key: progressKey(seq), value: p.encode()})
		}
		return entries
	}, 1, 0)
	if err != nil {
		return err
	}
	s.stats.putTime.Observe(time.Since(start).Seconds())
	s.arrived(m.env, p, at, m.size)
	return nil
}

// admit asks again what was asked before the content came.
func (s *Store) admit(m *message) error {
	if err := s.quotas(m.env, m.size); err != nil {
		return err
	}
	if s.crowded.Load() {
		return full("few file descriptors are left")
	}
	return s.space.room(0)
}

// add writes the entries of n new messages to the active generation, and goes on to the next one if it is full. about,
// if not 0, is the generation that an override among them is about.
func (s *Store) add(entries func(seq uint32) []entry, n, about uint32) (loc, error) {
	for {
		g, d, err := s.useActive()
		if err != nil {
			return loc{}, err
		}
		seq := g.seq.Add(n) - n + 1
		err = d.write(entries(seq))
		if err == nil {
			g.records.Add(int64(n))
			g.live.Add(int64(n))
			g.pin(about) // before anybody can think that nothing holds it
		}
		if d.low() {
			poke(s.low)
		}
		g.release()
		if errors.Is(err, errFull) {
			if _, err := s.roll(g); err != nil {
				return loc{}, err
			}
			continue
		}
		if errors.Is(err, ErrUnknown) || errors.Is(err, errPoisoned) {
			s.leaveBehind(g)
		}
		return loc{g.num, seq}, err
	}
}

// useActive gives the generation that takes new mail. After a failed commit that is a new one, or none.
func (s *Store) useActive() (*generation, *database, error) {
	s.mu.Lock()
	g := s.active
	s.mu.Unlock()
	for range 3 {
		var err error
		if g == nil {
			if g, err = s.roll(nil); err != nil {
				return nil, nil, err
			}
		}
		d, err := g.use(s)
		if errors.Is(err, errMoved) { // filled, drained and removed since
			g = nil
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if d.poisoned() == nil {
			return g, d, nil
		}
		g.release()
		s.leaveBehind(g)
		if g, err = s.roll(g); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, errPoisoned
}

// leaveBehind gives a generation up after a failed commit: it is read from, but never written to again.
func (s *Store) leaveBehind(g *generation) {
	g.mu.Lock()
	first := !g.left
	g.left = true
	why := errPoisoned
	if g.db != nil {
		why = g.db.poisoned()
	}
	g.mu.Unlock()
	s.mu.Lock()
	if s.active == g {
		s.active = nil
	}
	if first {
		s.fault = Fault{At: time.Now(), Err: why}
	}
	s.mu.Unlock()
	if first {
		s.log.Error("commit failed, generation is left behind", slog.String("dir", g.dir), slog.Any("err", why))
		s.wake()
	}
}

// Fault is a commit that failed.
type Fault struct {
	At  time.Time // zero: there was none
	Err error
}

// LastFault is the last commit that failed or was doubtful since the spool was opened. Whoever waited for it did not hear
// 250, and what was stored before is safe; but a disk that fails once will fail again.
func (s *Store) LastFault() Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// roll makes a new active generation in place of old, unless that was done already.
func (s *Store) roll(old *generation) (*generation, error) {
	s.rolling.Lock()
	defer s.rolling.Unlock()
	s.mu.Lock()
	if s.active != nil && s.active != old {
		defer s.mu.Unlock()
		return s.active, nil
	}
	if s.failed != nil && time.Now().Before(s.retryAt) {
		defer s.mu.Unlock()
		return nil, s.failed
	}
	g := s.spare
	s.spare = nil
	s.mu.Unlock()

	s.awaitClosing()
	var err error
	if g == nil {
		g, err = s.create(s.number())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
	if err != nil {
		s.patience = min(max(2*s.patience, rollRetry), maxRollRetry)
		s.retryAt = time.Now().Add(s.patience)
		return nil, err
	}
	s.patience = 0
	s.gens[g.num] = g
	s.active = g
	s.wake()
	return g, nil
}

// number gives the next generation's.
func (s *Store) number() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	return s.next - 1
}

// prepare is the preparer: it makes the next generation while the active one is still filled, so that no sender waits
// for that. It ends with ctx.
func (s *Store) prepare(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.low:
		}
		s.makeSpare()
	}
}

// makeSpare holds up who needs a new generation now, for no longer than making it would take them. So numbers rise in
// the order in which generations become active: of two copies of a message the one with the higher number is later.
func (s *Store) makeSpare() {
	s.rolling.Lock()
	defer s.rolling.Unlock()
	s.mu.Lock()
	there := s.spare != nil
	s.mu.Unlock()
	if there || time.Now().Before(s.spareAt) {
		return
	}
	g, err := s.create(s.number())
	if err != nil {
		s.spareAt = time.Now().Add(rollRetry)
		return // roll will try, and tell
	}
	s.mu.Lock()
	s.spare = g
	s.mu.Unlock()
}

// discardSpare takes the spare off the disk; nothing is in it.
func (s *Store) discardSpare() error {
	s.mu.Lock()
	g := s.spare
	s.spare = nil
	s.mu.Unlock()
	if g == nil {
		return nil
	}
	if _, err := g.closeIdle(s); err != nil {
		g.abandon()
	}
	return takeAway(g.dir)
}

// Filled generations take memory until the keeper has closed them; so many may wait for it, and for so long is waited.
const (
	maxFilled  = 2
	filledWait = 2 * time.Second
)

// awaitClosing keeps senders from being faster than the keeper.
func (s *Store) awaitClosing() {
	for limit := time.Now().Add(filledWait); s.filled() > maxFilled && time.Now().Before(limit); time.Sleep(2 * time.Millisecond) {
		s.wake()
	}
}

// filled counts the generations that were filled and are not closed yet.
func (s *Store) filled() (n int) {
	for _, g := range s.snapshot() {
		if !g.mu.TryLock() {
			n++ // it is being closed
			continue
		}
		if g.db != nil && g.db.fresh && !g.left {
			n++
		}
		g.mu.Unlock()
	}
	return n
}

// create makes the folder of a generation and proves with a first commit that it can be written to.
func (s *Store) create(num uint32) (g *generation, err error) {
	dir := filepath.Join(s.dir, generationName(num))
	size := int64(s.cfg.GenerationSize)
	memtable := memtableFor(s.cfg.GenerationSize)
	// The ballast is for deliveries, and so is room to open one of the generations that are there.
	done, err := s.space.want(openRoom(memtable) + size + openRoom(memtable))
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", dir, err)
	}
	defer done()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("create %s: %w", dir, err), takeAway(dir))
		}
	}()
	info := generationInfo{Version: generationVersion, Number: num, Memtable: memtable, KeyID: s.keys.id}
	if err := writeJSON(filepath.Join(dir, generationFile), info); err != nil {
		return nil, err
	}
	g = newGeneration(dir, info, s.keys.key)
	// The journal first: a disk that fails shows it here, where there is nothing to be given back but a file.
	log, err := createJournal(dir, size, g.key, s.tune.sync)
	if err != nil {
		return nil, err
	}
	d, err := s.openDatabase(dir, memtable, g.key)
	if err != nil {
		log.f.Close()
		return nil, err
	}
	// This commit reaches the log: what is promised later can do without, but not without a log that Badger opens.
	err = d.write([]entry{versionEntry()})
	d.begin(log)
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		d.abandon()
		return nil, err
	}
	g.db = d
	return g, nil
}

// versionEntry is what the first commit of a database is.
func versionEntry() entry { return entry{key: []byte("v"), value: []byte{generationVersion}} }

// generation gives the generation of a place.
func (s *Store) generation(num uint32) (*generation, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.gens[num]
	return g, ok
}

// load implements backing.
func (s *Store) load(at loc) (*message, *progress, error) {
	g, ok := s.generation(at.gen)
	if !ok {
		return nil, nil, errMoved
	}
	d, err := g.use(s)
	if err != nil {
		return nil, nil, err
	}
	defer g.release()
	b, err := d.get(messageKey(at.seq))
	if errors.Is(err, badger.ErrKeyNotFound) && d.poisoned() != nil {
		return nil, nil, errInDoubt
	}
	if err != nil {
		return nil, nil, notThere(err)
	}
	m, err := decodeMessage(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	p, err := s.progress(d, at, m.env)
	return m, p, err
}

// progress reads how far a message has come.
func (s *Store) progress(d *database, at loc, env *mta.Envelope) (*progress, error) {
	s.mu.Lock()
	b := s.overrides[at]
	s.mu.Unlock()
	if b == nil {
		var err error
		b, err = d.get(progressKey(at.seq))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return begin(env), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	p, err := decodeProgress(b, env)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return p, nil
}

// notThere tells a key that is not there from one that can't be read.
func notThere(err error) error {
	if errors.Is(err, badger.ErrKeyNotFound) {
		return errMoved
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// content implements backing.
func (s *Store) content(at loc, m *message) (io.ReadCloser, error) {
	if m.file != 0 {
		return s.openBody(m)
	}
	b, err := s.inline(at, m)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// inline reads content that lies in the generation, verified.
func (s *Store) inline(at loc, m *message) ([]byte, error) {
	g, ok := s.generation(at.gen)
	if !ok {
		return nil, errMoved
	}
	d, err := g.use(s)
	if err != nil {
		return nil, err
	}
	defer g.release()
	var b []byte
	switch {
	case m.at == 0: // format 1
		if b, err = d.get(bodyKey(at.seq)); err != nil {
			return nil, notThere(err)
		}
	case d.log == nil:
		return nil, fmt.Errorf("%w: %s has no journal", ErrDamaged, g.dir)
	default:
		if b, err = d.log.content(m); err != nil {
			return nil, err
		}
	}
	return b, verify(b, m)
}

// room implements backing.
func (s *Store) room(size int64) error {
	err := s.writable()
	if errors.Is(err, errNoSpace) {
		return full("%v", err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", mta.NewReply(451, "4.3.0", "Mail can't be stored for the moment, try again later"), err)
	}
	if s.crowded.Load() {
		return full("few file descriptors are left")
	}
	return s.space.room(size)
}

// ready implements backing.
func (s *Store) ready() error {
	err := s.writable()
	if err == nil {
		err = s.room(0)
	}
	if err != nil {
		return fmt.Errorf("spool: not ready: %w", err)
	}
	return nil
}

// writable reports whether there is a generation for new mail.
func (s *Store) writable() error {
	s.mu.Lock()
	g, failed := s.active, s.failed
	s.mu.Unlock()
	if g == nil {
		if failed == nil {
			failed = errors.New("a new generation is being made")
		}
		return failed
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.db == nil {
		return nil
	}
	return g.db.poisoned()
}

// usage implements backing.
func (s *Store) usage(u *Usage) {
	if d, err := s.space.disk(); err == nil {
		u.DiskFree, u.Reserve = d.free, s.space.kept(d)
	}
	u.DiskUsed = diskUsed(s.dir)
	u.FilesOpen, u.FilesMax = files()
}

// glance is Usage without what takes long.
func (s *Store) glance() Usage {
	var u Usage
	s.queue.mu.Lock()
	u.Messages, u.Bytes = int64(s.idx.byID.n), s.idx.bytes
	s.queue.mu.Unlock()
	if d, err := s.space.disk(); err == nil {
		u.DiskFree = d.free
	}
	return u
}

func (s *Store) generations() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.gens)
}

// Close implements Spool.
func (s *Store) Close() error {
	if !s.shut() {
		return nil
	}
	s.stop()
	s.kept.Wait()
	s.hints.close()
	errs := []error{s.discardSpare()}
	for _, g := range s.snapshot() {
		if _, err := g.closeIdle(s); err != nil {
			// Its log has everything: the next Open replays it.
			s.log.Warn("generation not closed", slog.String("dir", g.dir), slog.Any("err", err))
			g.abandon()
		}
	}
	s.forget()
	errs = append(errs, s.flock.Close())
	return errors.Join(errs...)
}

// snapshot lists the generations, oldest first.
func (s *Store) snapshot() []*generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sortedGenerations(s.gens)
}
