package policy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/internal/mta"
)

// retryWindow is how long a first try is remembered: who comes back later begins again.
const retryWindow = 2 * 24 * time.Hour

// grey is one entry: a tuple of network, sender and recipient that waits or passed, or a network that passed.
type grey struct {
	first  int64 // the first try, in Unix seconds
	passed int64 // the last time that it was let through; 0: it waits
}

// try weighs a further try: what is remembered then, and how long is left to wait; 0 lets it through.
func (e grey) try(now time.Time, g Greylist) (grey, time.Duration) {
	at := now.Unix()
	if !e.lives(now, g) {
		e = grey{first: at}
	}
	if e.passed != 0 {
		e.passed = at
		return e, 0
	}
	if left := g.Wait - now.Sub(time.Unix(e.first, 0)); left > 0 {
		return e, left
	}
	e.passed = at
	return e, 0
}

func (e grey) lives(now time.Time, g Greylist) bool {
	if e.passed != 0 {
		return now.Sub(time.Unix(e.passed, 0)) < g.Pass
	}
	return e.first != 0 && now.Sub(time.Unix(e.first, 0)) < retryWindow
}

// greyKey is a hash: who writes to whom is nobody's business, and all entries have one small size.
type greyKey [16]byte

func keyOf(parts ...string) greyKey {
	h := sha256.New()
	for _, p := range parts {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return greyKey(h.Sum(nil)[:16])
}

// greylist remembers who came back.
type greylist struct {
	mu      sync.Mutex // guards what follows
	entries map[greyKey]grey
	dirty   map[greyKey]bool // passed, and not yet kept
}

func newGreylist() *greylist {
	return &greylist{entries: map[greyKey]grey{}, dirty: map[greyKey]bool{}}
}

// try tells how long a client has still to wait with mail from a sender to a recipient; 0: it is let through. Of a
// network that passed once, everything is.
func (g *greylist) try(now time.Time, cfg Greylist, client netip.Addr, from, to mta.Path) time.Duration {
	if cfg.MaxEntries == 0 {
		return 0
	}
	net := networkOf(client.Unmap()).String()
	tuple, all := keyOf(net, strings.ToLower(from.String()), strings.ToLower(to.String())), keyOf(net)
	g.mu.Lock()
	defer g.mu.Unlock()
	if e, ok := g.entries[all]; ok && e.lives(now, cfg) {
		g.put(all, grey{first: e.first, passed: now.Unix()}, now, cfg)
		return 0
	}
	e, left := g.entries[tuple].try(now, cfg)
	g.put(tuple, e, now, cfg)
	if left == 0 {
		g.put(all, grey{first: e.first, passed: e.passed}, now, cfg)
	}
	return left
}

// keepAgain spares the tables from being written for each message of a network that passed.
const keepAgain = 24 * 60 * 60

// put is called with g.mu held.
func (g *greylist) put(k greyKey, e grey, now time.Time, cfg Greylist) {
	old, ok := g.entries[k]
	if !ok && len(g.entries) >= cfg.MaxEntries {
		g.evict(now, cfg)
	}
	if e.passed != 0 && e.passed-old.passed >= keepAgain {
		g.dirty[k] = true
	} else if old.passed != 0 {
		e.passed = old.passed
	}
	g.entries[k] = e
}

// evict makes room: of a sample it removes what is over, else the one that waits the longest, and one that passed only if
// there is nothing else. A flood of first tries can't push out who passed.
func (g *greylist) evict(now time.Time, cfg Greylist) {
	const sample = 32
	var victim greyKey
	var worst grey
	n := 0
	for k, e := range g.entries {
		if !e.lives(now, cfg) {
			g.remove(k)
			return
		}
		if n == 0 || (e.passed == 0) != (worst.passed == 0) && e.passed == 0 || (e.passed == 0) == (worst.passed == 0) && e.first < worst.first {
			victim, worst = k, e
		}
		if n++; n == sample {
			break
		}
	}
	g.remove(victim)
}

func (g *greylist) remove(k greyKey) {
	delete(g.entries, k)
	delete(g.dirty, k)
}

// What is kept of an entry that passed: a version and two times in Unix seconds.
const greyNamespace, greyVersion, greySize = "greylist", 1, 1 + 2*8

func (k greyKey) String() string { return hex.EncodeToString(k[:]) }

func parseGreyKey(s string) (greyKey, bool) {
	var k greyKey
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, false
	}
	return greyKey(b), true
}

func (e grey) encode() []byte {
	b := []byte{greyVersion}
	b = binary.BigEndian.AppendUint64(b, uint64(e.first))
	return binary.BigEndian.AppendUint64(b, uint64(e.passed))
}

func decodeGrey(b []byte) (grey, bool) {
	if len(b) != greySize || b[0] != greyVersion {
		return grey{}, false
	}
	return grey{first: int64(binary.BigEndian.Uint64(b[1:])), passed: int64(binary.BigEndian.Uint64(b[9:]))}, true
}

// restore puts back what was kept.
func (g *greylist) restore(key string, val []byte, now time.Time, cfg Greylist) bool {
	k, ok := parseGreyKey(key)
	e, whole := decodeGrey(val)
	if !ok || !whole || e.first <= 0 || e.passed < e.first || e.passed > now.Unix() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if e.lives(now, cfg) && len(g.entries) < cfg.MaxEntries {
		g.entries[k] = e
	}
	return true
}

// changes takes all that passed and was not kept yet.
func (g *greylist) changes() map[greyKey]grey {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make(map[greyKey]grey, len(g.dirty))
	for k := range g.dirty {
		all[k] = g.entries[k]
	}
	clear(g.dirty)
	return all
}

// foundWaiting is the finding that a client has to come back.
const foundWaiting = "greylist:wait"

func waiting(left time.Duration) mta.Finding {
	return mta.Finding{
		Name: foundWaiting, Action: mta.Defer, Status: "7.1",
		Text: fmt.Sprintf("greylisted, please try again in %d seconds", (left+time.Second-1)/time.Second), // who comes then is let through
	}
}

// suspicious tells whether what is known before content lets a client wait: by its score, or as one without a name of
// its own. Nobody waits whom a list vouches for.
func suspicious(v mta.Verdict, g Greylist) bool {
	if v.Score >= g.Above {
		return true
	}
	return v.Score > 0 && slices.ContainsFunc(v.Findings, func(f mta.Finding) bool { return kindOf(f.Name) == "rdns:" && f.Weight > 0 })
}

// greylisted tells how long a suspicious client has still to wait with mail to a recipient.
func (p *Policy) greylisted(j *judging, r *rules, env *mta.Envelope, to mta.Recipient, v mta.Verdict) time.Duration {
	if !r.stages[stageGreylist] || !suspicious(v, j.cfg.Judge.Greylist) {
		return 0
	}
	return p.greylist.try(time.Now(), j.cfg.Judge.Greylist, env.Peer.Addr.Addr(), env.From, to.Addr)
}

// filterGreylisted tells how long a client has still to wait because a filter asks for greylisting: for the first
// recipient, since who waited with one comes back with all.
func (p *Policy) filterGreylisted(j *judging, r *rules, env *mta.Envelope, v mta.Verdict) time.Duration {
	asked := slices.ContainsFunc(v.Findings, func(f mta.Finding) bool { return strings.HasSuffix(f.Name, ":greylist") })
	if !asked || v.Action >= mta.Defer || !r.stages[stageGreylist] || len(env.Rcpts) == 0 || env.Rcpts[0].Addr.IsPostmaster() {
		return 0
	}
	return p.greylist.try(time.Now(), j.cfg.Judge.Greylist, env.Peer.Addr.Addr(), env.From, env.Rcpts[0].Addr)
}

// recallGreylist puts back what was kept.
func (p *Policy) recallGreylist(ctx context.Context) {
	if p.deps.State == nil {
		return
	}
	now, damaged, cfg := time.Now(), 0, p.judging.Load().cfg.Judge.Greylist
	err := p.deps.State.Scan(ctx, greyNamespace, "", "", 0, func(key string, val []byte, _ uint64) error {
		if !p.greylist.restore(key, val, now, cfg) {
			damaged++
		}
		return nil
	})
	if err != nil || damaged > 0 {
		p.log.LogAttrs(ctx, slog.LevelWarn, "greylist could not all be read", slog.Int("damaged", damaged), slog.Any("err", err))
	}
}

// rememberGreylist writes who passed. What can't be written costs a sender one more wait after a restart.
func (p *Policy) rememberGreylist(ctx context.Context) {
	changes, pass := p.greylist.changes(), p.judging.Load().cfg.Judge.Greylist.Pass
	if p.deps.State == nil {
		return
	}
	var failed error
	for k, e := range changes {
		if _, err := p.deps.State.Put(ctx, greyNamespace, k.String(), e.encode(), pass, nil); err != nil {
			failed = err
		}
	}
	if failed != nil {
		p.log.LogAttrs(ctx, slog.LevelWarn, "greylist can't be kept", slog.Int("entries", len(changes)), slog.Any("err", failed))
	}
}
