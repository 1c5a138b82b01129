package spool

import (
	"fmt"
	"path/filepath"

	"understudy/internal/mta"
)

// Config is the section `spool:`.
type Config struct {
	// The folder that holds all spooled mail. It must be on a local file system that keeps what fsync promised, and
	// belongs to one process.
	Dir string `yaml:"dir"`

	// New mail is refused (452 4.3.1) while the file system has less than this free, or less than reserve_percent of
	// its size, whichever is more. Deliveries go on.
	Reserve        mta.Size `yaml:"reserve"`
	ReservePercent float64  `yaml:"reserve_percent"`

	// A file of this size is kept in the folder, so that a spool on a full disk can still be opened and drained. 0 is
	// none.
	Ballast mta.Size `yaml:"ballast"`

	// New mail is refused (452 4.3.1) while the content of all spooled mail is more than this. 0 is no limit.
	MaxSize mta.Size `yaml:"max_size"`

	// The same for each single domain, so that a flood for one can't shut out the others. 0 is no limit.
	MaxDomainSize mta.Size `yaml:"max_domain_size"`

	// Mail is kept in generations: small databases, each with a journal, that are filled, drained and removed whole. This
	// is how much mail one takes before the next one is begun. Its room is taken in advance; a quarter of it (at least
	// 4 MiB) is kept in memory, for up to five generations while much mail comes.
	GenerationSize mta.Size `yaml:"generation_size"`

	// How many older generations are kept open for deliveries at once.
	OpenGenerations int `yaml:"open_generations"`

	// A file with the key that mail is encrypted with at rest: 32 bytes as 64 hexadecimal digits, or raw. Without one
	// mail is stored as it is. After a change, generations that are there keep their key: list its file below until
	// they are drained.
	KeyFile     string   `yaml:"key_file"`
	OldKeyFiles []string `yaml:"old_key_files"`
}

// Limits of generation_size: below, content and its record don't fit into one commit; above, disk space comes back late.
const (
	minGeneration = 4 * mta.MiB
	maxGeneration = 256 * mta.MiB
)

// memtableFor is how much of a generation is its database's: that holds records alone, and content is most of mail.
func memtableFor(size mta.Size) int64 { return max(int64(size)/4, smallMemtable) }

// DefaultConfig is the section as it is when it is left out.
func DefaultConfig() Config {
	return Config{
		Dir:             "/var/lib/understudy/spool",
		Reserve:         mta.GiB,
		ReservePercent:  2,
		Ballast:         256 * mta.MiB,
		GenerationSize:  32 * mta.MiB,
		OpenGenerations: 8,
	}
}

// Validate reports all faults of the section.
func (c *Config) Validate() []mta.Fault {
	var faults []mta.Fault
	fault := func(key, format string, args ...any) { faults = append(faults, mta.NewFault(key, format, args...)) }
	if c.Dir == "" || !filepath.IsAbs(c.Dir) {
		fault("dir", "%q is not an absolute path", c.Dir)
	}
	if c.ReservePercent < 0 || c.ReservePercent > 90 {
		fault("reserve_percent", "%v is not between 0 and 90", c.ReservePercent)
	}
	for _, s := range []struct {
		key  string
		size mta.Size
	}{{"reserve", c.Reserve}, {"ballast", c.Ballast}, {"max_size", c.MaxSize}, {"max_domain_size", c.MaxDomainSize}} {
		if s.size < 0 {
			fault(s.key, "%d is less than 0", s.size)
		}
	}
	opening := 2*mta.Size(memtableFor(c.GenerationSize)) + openNeed
	if least := 2*opening + spareSpace; c.Reserve < least && c.Reserve >= 0 {
		fault("reserve", "%s is less than %s: that much is needed to deliver and to restart with generations of %s", c.Reserve, least, c.GenerationSize)
	}
	if least := opening + spareSpace; c.Ballast > 0 && c.Ballast < least {
		fault("ballast", "%s is less than %s, which it takes to open one generation of %s: make it more, or 0", c.Ballast, least, c.GenerationSize)
	}
	if c.GenerationSize < minGeneration || c.GenerationSize > maxGeneration {
		fault("generation_size", "%s is not between %s and %s", c.GenerationSize, minGeneration, maxGeneration)
	}
	if c.OpenGenerations < 2 || c.OpenGenerations > 64 {
		fault("open_generations", "%d is not between 2 and 64", c.OpenGenerations)
	}
	for i, f := range c.OldKeyFiles {
		if f == "" {
			fault(fmt.Sprintf("old_key_files[%d]", i), "is empty")
		}
	}
	return faults
}
