package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"understudy/internal/mta"
)

// maxFile is the most that a configuration may have: tens of thousands of domains. The YAML library takes a second for
// 20,000, and its time grows with their square.
const maxFile = 4 << 20

// Load reads a file. An error is Faults: all that is wrong with it.
func Load(path string) (*Config, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, wholeFile(path, err)
	case !info.Mode().IsRegular():
		return nil, wholeFile(path, errors.New("is not a regular file"))
	case info.Size() > maxFile:
		return nil, wholeFile(path, fmt.Errorf("is larger than %v", mta.Size(maxFile)))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, wholeFile(path, err)
	}
	return Parse(path, b)
}

func wholeFile(path string, err error) Faults {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err // the path stands before it anyway
	}
	return Faults{{File: path, Text: err.Error()}}
}

// Parse reads a configuration that stands, or could stand, in the named file: faults name it, and relative paths are
// meant from its folder, and are absolute afterwards. An error is Faults.
func Parse(name string, data []byte) (*Config, error) {
	c := Default()
	d := newDecoder(name)
	if !d.document(data, c) {
		return nil, d.faults.sorted()
	}
	dir, err := filepath.Abs(filepath.Dir(name))
	if err != nil {
		return nil, wholeFile(name, err)
	}
	c.finish(dir)
	for _, f := range c.Validate() {
		if !d.bad[f.Key] { // what could not be read needs no second fault
			d.fault(d.place(f.Key), f.Key, "%s", f.Text)
		}
	}
	if len(d.faults) > 0 {
		return nil, d.faults.sorted()
	}
	return c, nil
}

// document reads the one document of a file; false means that there is nothing to be checked further.
func (d *decoder) document(data []byte, c *Config) bool {
	top := &token.Position{Line: 1, Column: 1}
	data = []byte(strings.TrimPrefix(string(data), "\ufeff"))
	f, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey()) // we say it ourselves, and go on
	if e, ok := errors.AsType[yaml.Error](err); ok && e.GetToken() != nil {
		d.fault(e.GetToken().Position, "", "is not YAML: %s", e.GetMessage())
		return false
	}
	if err != nil {
		d.fault(top, "", "is not YAML: %v", err)
		return false
	}
	docs := 0
	for _, doc := range f.Docs {
		if doc.Body == nil {
			continue
		}
		docs++
		if docs > 1 {
			d.fault(position(doc.Body), "", "a second document begins here: there must be one")
			return false
		}
		if _, isMap := doc.Body.(*ast.MappingNode); !isMap {
			d.fault(position(doc.Body), "", "want keys and values such as hostname: mx2.example.org")
			return false
		}
		d.value(doc.Body, reflect.ValueOf(c).Elem(), "")
	}
	return true
}

// place is where a key stands, or the nearest one above it that is in the file.
func (d *decoder) place(key string) *token.Position {
	for key != "" {
		if at := d.places[key]; at != nil {
			return at
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return &token.Position{Line: 1, Column: 1}
}

// finish brings what was read into the form that the parts expect.
func (c *Config) finish(dir string) {
	if host, err := mta.Domain(c.Hostname); err == nil {
		c.Hostname = host
	}
	resolve(dir, c.paths())
	c.hand()
	for name, s := range c.Policy.Sources {
		resolve(dir, sourcePaths(&s))
		c.Policy.Sources[name] = s
	}
	for name, d := range c.Domains {
		resolve(dir, d.paths())
		c.Domains[name] = d
	}
}

func resolve(dir string, paths []*string) {
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}
