package policy

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// job is one look at a source: what to fetch, for whom, and what we have already.
type job struct {
	name   string
	cfg    Source
	serves []string // sorted
	have   tag      // zero: fetch in full
}

// errUnchanged says that the source still says what we have.
var errUnchanged = errors.New("unchanged")

// fetch takes one look at a source. What it returns was transferred whole, as far as the transport can tell.
func fetch(ctx context.Context, j job) (*content, error) {
	ctx, cancel := context.WithTimeout(ctx, j.cfg.Timeout)
	defer cancel()
	switch j.cfg.kind() {
	case "file":
		return fetchFile(ctx, j)
	case "url":
		return fetchURL(ctx, j)
	case "command":
		return fetchCommand(ctx, j)
	case "ldap":
		return fetchLDAP(ctx, j)
	case "sql":
		return fetchSQL(ctx, j)
	}
	return nil, errors.New("has no kind") // Validate has refused it
}

// checkLocal finds what is wrong on this host, without asking anybody: files that can't be read, programs that do not
// exist.
func checkLocal(name string, cfg Source) ListFaults {
	var faults ListFaults
	note := func(key string, err error) {
		if err != nil {
			faults = append(faults, ListFault{File: "policy.sources." + name, Text: key + ": " + err.Error()})
		}
	}
	for key, file := range map[string]string{
		"token_file": cfg.TokenFile, "ldap.password_file": cfg.LDAP.PasswordFile, "sql.dsn_file": cfg.SQL.DSNFile,
	} {
		if file != "" {
			_, err := readSecret(file)
			note(key, err)
		}
	}
	_, err := trust(cfg.CAFile)
	note("ca_file", err)
	switch cfg.kind() {
	case "command":
		_, err := exec.LookPath(cfg.Command[0])
		note("command", err)
	case "sql":
		if dsn, err := cfg.SQL.dsn(); err == nil {
			note("sql.dsn_file", checkDSN(cfg.SQL.Driver, dsn))
		}
	}
	return faults
}

// readSecret gives the first line of a file.
func readSecret(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %s", file, reason(err))
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return "", fmt.Errorf("%s: its first line is empty", file)
	}
	return line, nil
}

// trust is what certificates are checked against.
func trust(caFile string) (*tls.Config, error) {
	if caFile == "" {
		return &tls.Config{MinVersion: tls.VersionTLS12}, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", caFile, reason(err))
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: holds no certificate", caFile)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, nil
}

func fetchFile(ctx context.Context, j job) (*content, error) {
	info, err := os.Stat(j.cfg.File)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", j.cfg.File, reason(err))
	}
	t := fileTag(info)
	if t == j.have {
		return nil, errUnchanged
	}
	var c *content
	var wrong error
	err = readWhole(j.cfg.File, int64(j.cfg.MaxSize), func(r io.Reader) {
		s := &stream{r: r, limit: int64(j.cfg.MaxSize)}
		if c, wrong = readContent(ctx, s, j.cfg.File, j, t); s.err != nil {
			wrong = s.err
		}
	})
	if _, faults := errors.AsType[ListFaults](wrong); faults { // they name the file
		return nil, wrong
	}
	if err = cmp.Or(wrong, err); err != nil {
		return nil, fmt.Errorf("%s: %s", j.cfg.File, reason(err))
	}
	return c, nil
}

func fileTag(info os.FileInfo) tag {
	var inode uint64
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	return tag{Modified: fmt.Sprintf("%d %d %d", info.ModTime().UnixNano(), info.Size(), inode)}
}

// stream reads a list that has no end of its own but that of the transfer: at most limit octets, and the last line
// must be whole.
type stream struct {
	r     io.Reader
	limit int64
	last  byte
	err   error // what ended it, if not the end
}

func (s *stream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if n > 0 {
		s.last = p[n-1]
	}
	if s.limit -= int64(n); s.limit < 0 {
		err = errors.New("is larger than max_size")
	}
	if err == io.EOF && s.last != '\n' {
		err = errors.New("does not end with a newline, so it may have been cut off")
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
