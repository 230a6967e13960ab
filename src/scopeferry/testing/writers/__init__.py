"""Programs that write like a microscope, each with one library. Any Python that scopeferry knows can run them.

``python serve.py MODULE ROOT SETTINGS`` is what ``testing.slow_writer`` starts. A module here holds a class ``Writer``
and imports the standard library and its own library only, the latter when it is used; ``serve.py`` finds it by its
path, for the interpreter that runs it need not know scopeferry.
"""
