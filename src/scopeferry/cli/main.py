import sys
def main(argv=None):
    from scopeferry import transfer
    from scopeferry.errors import ScopeferryError
    argv = argv or sys.argv[1:]
    try:
        r = transfer(argv[1], argv[2])
    except ScopeferryError as e:
        print(e.code, e); return e.exit_code
    for p in r.problems[:20]: print(p)
    d = r.as_dict(); d.pop("problems"); print(d)
    return r.exit_code
