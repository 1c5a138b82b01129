package spool

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"understudy/internal/mta"
)

// Memory is an engine for tests. It keeps the whole contract but for stable storage: Restart is its crash.
type Memory struct {
	*queue
	disk *memoryDisk
}

// memoryDisk is what survives Restart.
type memoryDisk struct {
	mu   sync.Mutex
	next uint32
	rows map[loc]*memoryRow
}

type memoryRow struct {
	record, progress, body []byte
}

// NewMemory makes an empty spool without limits.
func NewMemory() *Memory { return NewMemoryConfig(Config{}) }

// NewMemoryConfig makes an empty spool; of cfg only the quotas are heeded.
func NewMemoryConfig(cfg Config) *Memory {
	return openMemory(cfg, &memoryDisk{rows: make(map[loc]*memoryRow)})
}

func openMemory(cfg Config, disk *memoryDisk) *Memory {
	m := &Memory{disk: disk}
	m.queue = newQueue(cfg, slog.New(slog.DiscardHandler), newMetrics(nil), m)
	for at, row := range disk.rows {
		msg, p, err := row.decode()
		if err != nil {
			panic(err) // our own encoding, in memory
		}
		m.idx.add(msg.env, at, msg.size, p)
	}
	return m
}

// Restart gives what a new process would find: all that was stored, and no leases.
func (m *Memory) Restart() *Memory {
	m.Close()
	return openMemory(m.cfg, m.disk)
}

// Damage changes the stored content of a message, for tests of what follows.
func (m *Memory) Damage(id mta.ID) {
	at, _ := m.where(id)
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	if row := m.disk.rows[at]; row != nil {
		row.body = append(bytes.Clone(row.body), '!')
	}
}

// Close implements Spool.
func (m *Memory) Close() error {
	if m.shut() {
		m.hints.close()
		m.forget()
	}
	return nil
}

func (r *memoryRow) decode() (*message, *progress, error) {
	msg, err := decodeMessage(r.record)
	if err != nil {
		return nil, nil, err
	}
	if r.progress == nil {
		return msg, begin(msg.env), nil
	}
	p, err := decodeProgress(r.progress, msg.env)
	return msg, p, err
}

func (m *Memory) put(ctx context.Context, env *mta.Envelope, p *progress, body io.Reader) error {
	content, err := io.ReadAll(readerCtx{ctx, body})
	if err != nil {
		return err
	}
	if err := m.quotas(env, int64(len(content))); err != nil {
		return err
	}
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.leave()
	m.arrived(env, p, m.disk.add(env, p, content), int64(len(content)))
	return nil
}

func (d *memoryDisk) add(env *mta.Envelope, p *progress, content []byte) loc {
	msg := message{size: int64(len(content)), sum: checksum(content), env: env}
	row := &memoryRow{record: msg.encode(), body: content}
	if p != nil {
		row.progress = p.encode()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	at := loc{seq: d.next}
	d.rows[at] = row
	return at
}

func (m *Memory) load(at loc) (*message, *progress, error) {
	m.disk.mu.Lock()
	row, ok := m.disk.rows[at]
	if !ok {
		m.disk.mu.Unlock()
		return nil, nil, errMoved
	}
	copied := *row
	m.disk.mu.Unlock()
	return copied.decode()
}

func (m *Memory) persist(changes []*change) {
	for _, c := range changes {
		for i := range c.reports {
			r := &c.reports[i]
			c.repAt = append(c.repAt, m.disk.add(r.Envelope, nil, r.Content))
		}
		m.disk.mu.Lock()
		if c.p == nil {
			delete(m.disk.rows, c.at)
		} else if row, ok := m.disk.rows[c.at]; ok {
			row.progress = c.p.encode()
		} else {
			c.err = fmt.Errorf("%w: nothing at %d", ErrDamaged, c.at.seq)
		}
		m.disk.mu.Unlock()
	}
}

func (m *Memory) content(at loc, msg *message) (io.ReadCloser, error) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	row, ok := m.disk.rows[at]
	if !ok {
		return nil, errMoved
	}
	if err := verify(row.body, msg); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(row.body)), nil
}

func (m *Memory) room(int64) error { return nil }
func (m *Memory) ready() error     { return nil }
func (m *Memory) usage(*Usage)     {}
